"""The scheduler, with a device whose image of a sample is the sample's name."""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.failures import DeviceLost, DrawFailed, NotReady, Overloaded
from server.samples import Sample
from server.scheduler import Drawn, Scheduler
from tests.server.crowd import FakeDevice, picture_of


@dataclass(frozen=True)
class Step:
    """As much of a hop as the scheduler looks at."""

    member: str


@dataclass(frozen=True)
class Route:
    """As much of a plan as the scheduler looks at."""

    hops: tuple[Step, ...]


def route(*members: str) -> Any:
    """A plan through these members."""
    return Route(tuple(map(Step, members)))


PLANS = [route("one"), route("two", "two"), route("four", "four", "two"), route(*["four"] * 4), route(*["teacher"] * 9)]


@dataclass(frozen=True)
class Visit:
    """One caller: how many turns of the loop it waits, what it wants, and after how many more turns it leaves, if it does."""

    delay: int
    samples: tuple[Sample, ...]
    leaves_after: int | None


samples = st.builds(Sample, plan=st.sampled_from(PLANS), condition=st.just((1,)), seed=st.integers(0, 2**63 - 1))
visits = st.builds(
    Visit,
    delay=st.integers(0, 30),
    samples=st.lists(samples, min_size=1, max_size=5, unique=True).map(tuple),
    leaves_after=st.none() | st.integers(0, 30),
)
failures = st.lists(st.sampled_from([None, None, None, ValueError("broken wave"), DeviceLost("lost")]), max_size=12)


def run(scenario: Callable[[Scheduler], Coroutine[Any, Any, None]], device: FakeDevice, **limits: int) -> None:
    """Run a scenario beside a scheduler's loop."""

    async def main() -> None:
        scheduler = Scheduler(device, **({"max_wave": 4, "max_evaluations": 1000} | limits))
        loop = asyncio.create_task(scheduler.run())
        try:
            while scheduler.state == "starting":
                await asyncio.sleep(0)
            await scenario(scheduler)
        finally:
            device.gate.set()
            loop.cancel()
            await asyncio.gather(loop, return_exceptions=True)

    asyncio.run(main())


async def held(device: FakeDevice, waves: int) -> None:
    """Wait until the device stands in its so-manyth wave."""
    while len(device.waves) < waves:
        await asyncio.sleep(0)


def check(visit: Visit, outcome: list[Drawn] | BaseException) -> None:
    """The caller got its own images, all of them and in order, or an error that has a name."""
    if isinstance(outcome, BaseException):
        assert isinstance(outcome, DrawFailed | DeviceLost | Overloaded | asyncio.CancelledError)
        return
    assert len(outcome) == len(visit.samples)
    for drawn, sample in zip(outcome, visit.samples, strict=True):
        assert np.array_equal(drawn.pixels, picture_of(sample))
        assert drawn.device_seconds > 0 and drawn.queue_seconds >= 0


@settings(max_examples=150, deadline=None)
@given(visits=st.lists(visits, max_size=16), failures=failures, max_wave=st.integers(1, 5), bound=st.integers(5, 60))
def test_every_accepted_sample_gets_exactly_one_answer_and_its_own(
    visits: list[Visit], failures: list[BaseException | None], max_wave: int, bound: int
) -> None:
    device = FakeDevice()
    device.failures = failures.copy()
    most = 0

    async def visitor(scheduler: Scheduler, visit: Visit) -> list[Drawn]:
        nonlocal most
        for _ in range(visit.delay):
            await asyncio.sleep(0)
        drawing = asyncio.ensure_future(scheduler.draw(visit.samples))
        if visit.leaves_after is not None:
            for _ in range(visit.leaves_after):
                await asyncio.sleep(0)
                most = max(most, scheduler.evaluations)
            drawing.cancel()
        return await drawing

    async def scenario(scheduler: Scheduler) -> None:
        outcomes = await asyncio.gather(*(visitor(scheduler, visit) for visit in visits), return_exceptions=True)
        for visit, outcome in zip(visits, outcomes, strict=True):
            check(visit, outcome)
        assert scheduler.evaluations == 0

    run(scenario, device, max_wave=max_wave, max_evaluations=bound)
    assert most <= bound
    for wave in device.waves:
        assert len(wave) <= max_wave
        assert len({turn.hop.member for turn in wave}) == 1
    taken = Counter((id(turn.sample), turn.number) for wave in device.waves for turn in wave)
    assert set(taken.values()) <= {1}, "a hop was taken twice"


@settings(max_examples=50, deadline=None)
@given(wishes=st.lists(samples, min_size=1, max_size=20, unique=True), max_wave=st.integers(1, 5))
def test_no_lane_is_served_twice_while_another_waits(wishes: list[Sample], max_wave: int) -> None:
    device = FakeDevice()

    async def scenario(scheduler: Scheduler) -> None:
        await scheduler.draw(wishes)

    run(scenario, device, max_wave=max_wave)
    served = [wave[0].hop.member for wave in device.waves]
    waiting = [{sample.plan.hops[0].member: 0 for sample in wishes}]
    for number in range(len(device.waves)):  # replay: which lanes had somebody in them before each wave
        done = Counter(turn.sample for earlier in device.waves[: number + 1] for turn in earlier)
        left = [sample for sample in wishes if done[sample] < sample.evaluations]
        waiting.append({sample.plan.hops[done[sample]].member: 0 for sample in left})
    for number, member in enumerate(served):
        for other in waiting[number].keys() - {member}:
            later = [at for at in range(number + 1, len(served)) if served[at] in (member, other)]
            assert served[later[0]] == other, f"{other} waited while {member} was served twice"


def test_a_one_step_sample_does_not_wait_for_the_512_step_one_before_it() -> None:
    device = FakeDevice()

    async def scenario(scheduler: Scheduler) -> None:
        device.gate.clear()
        slow = asyncio.ensure_future(scheduler.draw([Sample(route(*["teacher"] * 512), (), seed=1)]))
        await held(device, 1)
        quick = asyncio.ensure_future(scheduler.draw([Sample(route("one"), (), seed=2)]))
        await asyncio.sleep(0)
        device.gate.set()
        await quick
        assert [wave[0].hop.member for wave in device.waves[:2]] == ["teacher", "one"]
        assert not slow.done()
        slow.cancel()

    run(scenario, device)


def test_samples_join_those_already_under_way_at_the_next_wave() -> None:
    device = FakeDevice()

    async def scenario(scheduler: Scheduler) -> None:
        device.gate.clear()
        first = asyncio.ensure_future(scheduler.draw([Sample(PLANS[3], (), seed=1)]))
        await held(device, 1)
        second = asyncio.ensure_future(scheduler.draw([Sample(PLANS[3], (), seed=2)]))
        await asyncio.sleep(0)
        device.gate.set()
        await asyncio.gather(first, second)
        sizes = [len(wave) for wave in device.waves]
        assert sizes == [1, 2, 2, 2, 1]
        assert [turn.number for turn in device.waves[1]] == [1, 0]

    run(scenario, device)


def test_a_caller_who_leaves_frees_its_work_at_the_next_wave() -> None:
    device = FakeDevice()

    async def scenario(scheduler: Scheduler) -> None:
        device.gate.clear()
        leaving = asyncio.ensure_future(scheduler.draw([Sample(PLANS[4], (), seed=seed) for seed in range(8)]))
        await held(device, 1)  # four are in the wave, four wait
        assert scheduler.evaluations == 72
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        assert scheduler.evaluations == 0
        device.gate.set()
        await scheduler.draw([Sample(PLANS[0], (), seed=9)])
        assert [turn.sample.seed for wave in device.waves[1:] for turn in wave] == [9]

    run(scenario, device)


def test_a_request_that_would_exceed_the_bound_is_refused_whole_and_told_the_backlog() -> None:
    device = FakeDevice(seconds=0.01)

    async def scenario(scheduler: Scheduler) -> None:
        await scheduler.draw([Sample(PLANS[1], (), seed=0)])  # so that the pace is known
        device.gate.clear()
        waiting = asyncio.ensure_future(scheduler.draw([Sample(PLANS[1], (), seed=seed) for seed in range(4)]))
        await held(device, 3)
        with pytest.raises(Overloaded) as refusal:
            await scheduler.draw([Sample(PLANS[0], (), seed=5), Sample(PLANS[1], (), seed=6)])
        assert refusal.value.backlog_seconds >= 8 * 0.01
        assert scheduler.evaluations == 8
        device.gate.set()
        await waiting

    run(scenario, device, max_evaluations=10)


def test_a_failing_wave_fails_its_samples_only() -> None:
    device = FakeDevice()
    device.failures = [None, RuntimeError("out of memory")]

    async def scenario(scheduler: Scheduler) -> None:
        device.gate.clear()
        calls = [asyncio.ensure_future(scheduler.draw([Sample(plan, (), seed=1)])) for plan in PLANS[:3]]
        await held(device, 1)
        device.gate.set()
        one, two, four = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(two, DrawFailed) and isinstance(two.__cause__, RuntimeError)
        assert not isinstance(one, Exception) and not isinstance(four, Exception)

    run(scenario, device)


def test_a_lost_device_fails_everyone_and_refuses_whoever_comes_later() -> None:
    device = FakeDevice()
    device.failures = [DeviceLost("gone")]

    async def scenario(scheduler: Scheduler) -> None:
        calls = [asyncio.ensure_future(scheduler.draw([Sample(plan, (), seed=1)])) for plan in PLANS]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(outcome, DeviceLost) for outcome in outcomes)
        assert scheduler.state == "stopped"
        with pytest.raises(DeviceLost):
            await scheduler.draw([Sample(PLANS[0], (), seed=1)])

    run(scenario, device)


def test_nothing_is_drawn_before_the_device_is_prepared() -> None:
    async def main() -> None:
        with pytest.raises(NotReady):
            await Scheduler(FakeDevice(), max_wave=1, max_evaluations=1).draw([Sample(PLANS[0], (), seed=1)])

    asyncio.run(main())
