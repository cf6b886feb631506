"""The scheduler, with a device whose image of a sample is the sample's name."""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion.plans import Hop, Plan, student_plan, teacher_plan
from server.failures import DeviceLost, DrawFailed, NotReady, OutOfMemory, Overloaded
from server.pace import Timing
from server.samples import Sample
from server.scheduler import Drawn, Scheduler
from tests.server.crowd import FakeDevice, picture_of, preview_of


def through(*hops: tuple[str, float]) -> Plan:
    """The plan of these members, each to its time."""
    times = [1.0, *(s for _, s in hops)]
    return Plan(hops=tuple(Hop(member=member, t=t, s=s) for t, (member, s) in zip(times, hops, strict=False)))


ONE, TWO, FOUR, NINE = (student_plan(name, n) for name, n in (("one", 1), ("two", 2), ("four", 4), ("teacher", 9)))
MIXED = through(("four", 0.75), ("four", 0.5), ("two", 0.0))
SOONER = through(("four", 0.75), ("two", 0.0))
SOONEST = through(("four", 0.75), ("one", 0.0))
HEUN = teacher_plan("teacher", 5, rule="heun")
PLANS = [ONE, TWO, MIXED, FOUR, NINE, HEUN]


@dataclass(frozen=True)
class Visit:
    """One caller: how many turns of the loop it waits, what it wants and how soon, and after how many more turns it leaves."""

    delay: int
    samples: tuple[Sample, ...]
    within: float | None
    leaves_after: int | None


samples = st.builds(
    Sample,
    plan=st.sampled_from(PLANS),
    condition=st.just((1,)),
    seed=st.integers(0, 2**63 - 1),
    guidance=st.sampled_from([0.0, 0.0, 1.0]),
    family=st.sampled_from(["", "", "other"]),
    alternatives=st.sampled_from([(), (SOONER, SOONEST, TWO)]),
)
visits = st.builds(
    Visit,
    delay=st.integers(0, 30),
    samples=st.lists(samples, min_size=1, max_size=5, unique=True).map(tuple),
    within=st.sampled_from([None, None, -1.0, 0.0, 0.001, 1.0]),
    leaves_after=st.none() | st.integers(0, 30),
)
FAILURES = [None, None, None, ValueError("broken wave"), OutOfMemory("too large"), DeviceLost("lost")]
failures = st.lists(st.sampled_from(FAILURES), max_size=12)


def run(scenario: Callable[[Scheduler], Coroutine[Any, Any, None]], device: FakeDevice, **limits: Any) -> None:
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


def used(sample: Sample, drawn: Drawn) -> Sample:
    """The sample that was drawn: as it was asked for, or by the alternative that took over."""
    assert drawn.plan == sample.plan or (drawn.shortened and drawn.plan in sample.alternatives)
    return replace(sample, plan=drawn.plan)


def check(visit: Visit, outcome: list[Drawn] | BaseException) -> None:
    """The caller got its own images, all of them and in order, or an error that has a name."""
    if isinstance(outcome, BaseException):
        named = DrawFailed | DeviceLost | Overloaded | NotReady | asyncio.CancelledError
        assert isinstance(outcome, named), repr(outcome)
        return
    assert len(outcome) == len(visit.samples)
    for drawn, sample in zip(outcome, visit.samples, strict=True):
        assert np.array_equal(drawn.pixels, picture_of(used(sample, drawn)))
        assert drawn.device_seconds > 0 and drawn.queue_seconds >= 0


@settings(max_examples=200, deadline=None)
@given(
    visits=st.lists(visits, max_size=16),
    failures=failures,
    max_wave=st.integers(1, 5),
    bound=st.integers(5, 60),
    drained_after=st.none() | st.integers(0, 60),
    shorten_all=st.booleans(),
    asynchronous=st.booleans(),
)
def test_every_accepted_sample_gets_exactly_one_answer_and_its_own(
    visits: list[Visit],
    failures: list[BaseException | None],
    max_wave: int,
    bound: int,
    drained_after: int | None,
    shorten_all: bool,
    asynchronous: bool,
) -> None:
    device = FakeDevice(asynchronous=asynchronous)
    device.timings = tuple(Timing(name, False, 1, 0.0003) for name in ("one", "two", "four"))
    device.failures = failures.copy()
    most = 0

    async def visitor(scheduler: Scheduler, visit: Visit) -> list[Drawn]:
        nonlocal most
        for _ in range(visit.delay):
            await asyncio.sleep(0)
        deadline = None if visit.within is None else perf_counter() + visit.within
        drawing = asyncio.ensure_future(scheduler.draw(visit.samples, deadline=deadline))
        if visit.leaves_after is not None:
            for _ in range(visit.leaves_after):
                await asyncio.sleep(0)
                most = max(most, scheduler.evaluations)
            drawing.cancel()
        return await drawing

    async def scenario(scheduler: Scheduler) -> None:
        scheduler.shorten_all = shorten_all
        crowd = asyncio.gather(*(visitor(scheduler, visit) for visit in visits), return_exceptions=True)
        if drained_after is not None:
            for _ in range(drained_after):
                await asyncio.sleep(0)
            await scheduler.drain(10)
            assert scheduler.evaluations == 0
        for visit, outcome in zip(visits, await crowd, strict=True):
            check(visit, outcome)
        assert scheduler.evaluations == 0 and scheduler.backlog_seconds == 0

    run(scenario, device, max_wave=max_wave, max_evaluations=bound)
    assert most <= bound
    for wave in device.waves:
        assert 0 < len(wave) <= max_wave
        assert len({(turn.sample.family, turn.hop.member, turn.sample.guidance != 0) for turn in wave}) == 1
    taken = Counter((turn.sample.seed, turn.sample.family, turn.number) for wave in device.finished for turn in wave)
    wanted = Counter((sample.seed, sample.family) for visit in visits for sample in visit.samples)
    assert all(times <= wanted[seed, family] for (seed, family, _), times in taken.items()), "a hop was taken twice"


def test_a_one_step_sample_does_not_wait_for_the_512_step_one_before_it() -> None:
    device = FakeDevice()

    async def scenario(scheduler: Scheduler) -> None:
        device.gate.clear()
        slow = asyncio.ensure_future(scheduler.draw([Sample(student_plan("teacher", 512), (), seed=1)]))
        await held(device, 1)
        quick = asyncio.ensure_future(scheduler.draw([Sample(ONE, (), seed=2)]))
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
        first = asyncio.ensure_future(scheduler.draw([Sample(FOUR, (), seed=1)]))
        await held(device, 1)
        second = asyncio.ensure_future(scheduler.draw([Sample(FOUR, (), seed=2)]))
        await asyncio.sleep(0)
        device.gate.set()
        await asyncio.gather(first, second)
        sizes = [len(wave) for wave in device.waves]
        assert sizes == [1, 2, 2, 2, 1]
        assert [turn.number for turn in device.waves[1]] == [1, 0]

    run(scenario, device)


def test_plans_that_need_the_same_network_now_share_a_wave_and_heun_hops_are_two_turns() -> None:
    device = FakeDevice()

    async def scenario(scheduler: Scheduler) -> None:
        heun, nine = Sample(HEUN, (), seed=1), Sample(NINE, (), seed=2)
        guided = Sample(NINE, (), seed=3, guidance=2.0)
        drawn = await scheduler.draw([heun, nine, guided])
        assert [image.evaluations for image in drawn] == [5, 9, 9]
        together = [{turn.sample.seed for turn in wave} for wave in device.waves]
        assert together.count({1, 2}) == 5 and together.count({2}) == 4 and together.count({3}) == 9

    run(scenario, device)


def test_the_next_wave_stands_ready_before_an_asynchronous_device_has_finished_the_one_it_runs() -> None:
    device = FakeDevice(asynchronous=True)

    async def scenario(scheduler: Scheduler) -> None:
        device.gate.clear()
        calls = [asyncio.ensure_future(scheduler.draw([Sample(plan, (), seed=1)])) for plan in (TWO, NINE, ONE)]
        await held(device, 2)
        for _ in range(100):
            await asyncio.sleep(0)
        assert [wave[0].hop.member for wave in device.waves] == ["two", "teacher"]  # two in flight, not three
        device.gate.set()
        await asyncio.gather(*calls)

    run(scenario, device)


def test_a_wave_is_cut_as_late_as_possible_so_that_it_can_grow() -> None:
    device = FakeDevice()
    device.timings = (Timing("two", False, 1, 30.0),)  # it should take long: there is time

    async def scenario(scheduler: Scheduler) -> None:
        device.gate.clear()
        first = asyncio.ensure_future(scheduler.draw([Sample(TWO, (), seed=1)]))
        await held(device, 1)
        others = [asyncio.ensure_future(scheduler.draw([Sample(ONE, (), seed=seed)])) for seed in range(3)]
        await asyncio.sleep(0.02)
        assert len(device.waves) == 1
        device.gate.set()
        await asyncio.gather(first, *others)
        assert [len(wave) for wave in device.waves if wave[0].hop.member == "one"] == [3]

    run(scenario, device)


def test_a_promise_that_presses_goes_before_what_has_waited_longer() -> None:
    device = FakeDevice()

    async def scenario(scheduler: Scheduler) -> None:
        device.gate.clear()
        calls = [scheduler.draw([Sample(NINE, (), seed=1)]), scheduler.draw([Sample(FOUR, (), seed=2)])]
        calls.append(scheduler.draw([Sample(ONE, (), seed=3)], deadline=perf_counter() + 0.001))
        drawing = [asyncio.ensure_future(call) for call in calls]
        await held(device, 1)
        device.gate.set()
        await asyncio.gather(*drawing)
        assert device.waves[0][0].hop.member == "one"

    run(scenario, device)


def test_a_caller_who_leaves_frees_its_work_at_the_next_wave() -> None:
    device = FakeDevice()

    async def scenario(scheduler: Scheduler) -> None:
        device.gate.clear()
        leaving = asyncio.ensure_future(scheduler.draw([Sample(NINE, (), seed=seed) for seed in range(8)]))
        await held(device, 1)  # four are in the wave, four stand ready
        assert scheduler.evaluations == 72
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        assert scheduler.evaluations == 0
        device.gate.set()
        await scheduler.draw([Sample(ONE, (), seed=9)])
        assert [turn.sample.seed for wave in device.waves[1:] for turn in wave] == [9]

    run(scenario, device)


def test_a_request_that_would_exceed_the_bound_is_refused_whole_and_told_the_backlog() -> None:
    device = FakeDevice(seconds=0.01)

    async def scenario(scheduler: Scheduler) -> None:
        await scheduler.draw([Sample(TWO, (), seed=0)])  # so that the pace is known
        device.gate.clear()
        waiting = asyncio.ensure_future(scheduler.draw([Sample(TWO, (), seed=seed) for seed in range(4)]))
        await held(device, 3)
        with pytest.raises(Overloaded) as refusal:
            await scheduler.draw([Sample(ONE, (), seed=5), Sample(TWO, (), seed=6)])
        assert refusal.value.backlog_seconds >= 2 * 0.01
        assert scheduler.evaluations == 8
        device.gate.set()
        await waiting

    run(scenario, device, max_evaluations=10)


def test_a_failing_wave_fails_its_samples_only() -> None:
    device = FakeDevice()
    device.failures = [None, RuntimeError("broken")]

    async def scenario(scheduler: Scheduler) -> None:
        device.gate.clear()
        calls = [asyncio.ensure_future(scheduler.draw([Sample(plan, (), seed=1)])) for plan in (ONE, TWO, FOUR)]
        await held(device, 1)
        device.gate.set()
        one, two, four = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(two, DrawFailed) and isinstance(two.__cause__, RuntimeError)
        assert not isinstance(one, Exception) and not isinstance(four, Exception)

    run(scenario, device)


def test_a_wave_that_is_too_large_is_drawn_in_halves() -> None:
    device = FakeDevice()
    device.failures = [OutOfMemory("too large")]

    async def scenario(scheduler: Scheduler) -> None:
        wishes = [Sample(ONE, (), seed=seed) for seed in range(3)]
        drawn = await scheduler.draw(wishes)
        assert all(np.array_equal(image.pixels, picture_of(wish)) for image, wish in zip(drawn, wishes, strict=True))
        assert [len(wave) for wave in device.waves] == [3, 2, 1]

    run(scenario, device)


def test_a_half_that_is_still_too_large_fails_its_samples_only() -> None:
    device = FakeDevice()
    device.failures = [OutOfMemory("too large"), OutOfMemory("still too large")]

    async def scenario(scheduler: Scheduler) -> None:
        calls = [scheduler.draw([Sample(ONE, (), seed=seed)]) for seed in range(4)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert [isinstance(outcome, DrawFailed) for outcome in outcomes] == [True, True, False, False]
        assert [len(wave) for wave in device.waves] == [4, 2, 2]
        assert len(await scheduler.draw([Sample(ONE, (), seed=9)])) == 1

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
            await scheduler.draw([Sample(ONE, (), seed=1)])

    run(scenario, device)


def test_a_device_that_hangs_fails_everyone_and_ends_the_loop() -> None:
    device = FakeDevice()
    device.gate.clear()

    async def scenario(scheduler: Scheduler) -> None:
        calls = [asyncio.ensure_future(scheduler.draw([Sample(plan, (), seed=1)])) for plan in PLANS]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(outcome, DeviceLost) for outcome in outcomes)
        assert scheduler.state == "stopped"

    run(scenario, device, hang_seconds=0.05)


def test_a_wave_that_was_expected_to_take_long_does_not_count_as_hanging() -> None:
    device = FakeDevice(seconds=0.1)
    device.timings = (Timing("one", False, 1, 0.1),)

    async def scenario(scheduler: Scheduler) -> None:
        assert len(await scheduler.draw([Sample(ONE, (), seed=1)])) == 1

    run(scenario, device, hang_seconds=0.01)


def test_nothing_is_drawn_before_the_device_is_prepared() -> None:
    async def main() -> None:
        with pytest.raises(NotReady):
            await Scheduler(FakeDevice(), max_wave=1, max_evaluations=1).draw([Sample(ONE, (), seed=1)])

    asyncio.run(main())


def test_draining_finishes_what_is_accepted_and_refuses_the_rest() -> None:
    device = FakeDevice()

    async def scenario(scheduler: Scheduler) -> None:
        device.gate.clear()
        accepted = asyncio.ensure_future(scheduler.draw([Sample(NINE, (), seed=1)]))
        await held(device, 1)
        draining = asyncio.ensure_future(scheduler.drain(10))
        await asyncio.sleep(0)
        with pytest.raises(NotReady, match="about to end"):
            await scheduler.draw([Sample(ONE, (), seed=2)])
        assert not draining.done()
        device.gate.set()
        await draining
        assert len(await accepted) == 1

    run(scenario, device)


def test_draining_gives_up_in_time() -> None:
    device = FakeDevice()

    async def scenario(scheduler: Scheduler) -> None:
        device.gate.clear()
        accepted = asyncio.ensure_future(scheduler.draw([Sample(NINE, (), seed=1)]))
        await held(device, 1)
        await scheduler.drain(0.01)
        with pytest.raises(NotReady):
            await accepted

    run(scenario, device)


def test_previews_and_progress_tell_every_hop_of_who_asks() -> None:
    device = FakeDevice()
    previews: list[tuple[int, int, bytes]] = []
    progress: list[tuple[int, int]] = []

    async def scenario(scheduler: Scheduler) -> None:
        four, heun = Sample(FOUR, (), seed=1), Sample(HEUN, (), seed=2)
        quiet = asyncio.ensure_future(scheduler.draw([Sample(FOUR, (), seed=3)]))
        await scheduler.draw(
            [four, heun],
            preview=lambda place, taken, pixels: previews.append((place, taken, pixels.tobytes())),
            progress=lambda place, taken: progress.append((place, taken)),
        )
        await quiet
        expected = [(0, taken, preview_of(four, taken).tobytes()) for taken in (1, 2, 3)]
        expected += [(1, taken, preview_of(heun, taken).tobytes()) for taken in (2, 4)]
        assert sorted(previews) == expected
        assert sorted(progress) == [(0, 1), (0, 2), (0, 3), (0, 4), (1, 2), (1, 4), (1, 5)]
        asked = [turn for wave in device.waves for turn in wave if turn.preview]
        assert {turn.sample.seed for turn in asked} == {1, 2}

    run(scenario, device)


def test_a_preview_that_raises_fails_its_own_draw_only() -> None:
    def broken(place: int, taken: int, pixels: Any) -> None:
        raise BrokenPipeError("nobody looks")

    async def scenario(scheduler: Scheduler) -> None:
        calls = [scheduler.draw([Sample(FOUR, (), seed=1)], preview=broken), scheduler.draw([Sample(FOUR, (), seed=2)])]
        broke, fine = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(broke, BrokenPipeError) and not isinstance(fine, BaseException)
        assert scheduler.evaluations == 0

    run(scenario, FakeDevice())


SECONDS = 0.05
"""What each wave of the late device is known to take."""


def drawn_with(within: float | None, alternatives: tuple[Plan, ...], *, shorten_all: bool = False) -> Drawn:
    """Draw a 4-step sample on a device that is known for SECONDS a wave, for somebody who accepts alternatives."""
    device = FakeDevice()
    device.timings = tuple(Timing(name, False, 1, SECONDS) for name in ("one", "two", "four"))
    result: list[Drawn] = []

    async def scenario(scheduler: Scheduler) -> None:
        scheduler.shorten_all = shorten_all
        deadline = None if within is None else perf_counter() + within
        sample = Sample(FOUR, (), seed=1, alternatives=alternatives)
        result.extend(await scheduler.draw([sample], deadline=deadline))
        assert np.array_equal(result[0].pixels, picture_of(used(sample, result[0])))

    run(scenario, device)
    return result[0]


def test_a_sample_that_will_be_late_ends_by_the_longest_alternative_that_is_in_time() -> None:
    endings = (SOONEST, MIXED, ONE)  # MIXED: three evaluations, agrees with the first two of FOUR
    assert drawn_with(None, endings).plan == FOUR
    assert drawn_with(100 * SECONDS, endings).plan == FOUR
    late = drawn_with(4.4 * SECONDS, endings)  # of four waves and a margin of a fifth
    assert late.plan == MIXED and late.shortened and late.evaluations == 3
    assert drawn_with(3.2 * SECONDS, endings).plan == SOONEST
    assert drawn_with(2.0 * SECONDS, endings).plan == ONE


def test_a_sample_that_no_ending_can_save_takes_the_shortest_and_one_that_did_not_consent_is_left_alone() -> None:
    assert drawn_with(0.0, (SOONEST, MIXED)).plan == SOONEST
    untouched = drawn_with(0.0, ())
    assert untouched.plan == FOUR and not untouched.shortened


def test_in_a_brown_out_whoever_consented_ends_early_promised_or_not() -> None:
    assert drawn_with(None, (MIXED, SOONEST), shorten_all=True).plan == SOONEST
    assert drawn_with(None, (), shorten_all=True).plan == FOUR


def test_an_alternative_takes_over_only_where_its_first_hops_are_those_taken() -> None:
    device = FakeDevice()

    async def scenario(scheduler: Scheduler) -> None:
        device.gate.clear()
        sample = Sample(FOUR, (), seed=1, alternatives=(ONE, SOONEST, MIXED))
        drawing = asyncio.ensure_future(scheduler.draw([sample]))
        await held(device, 1)
        scheduler.shorten_all = True  # one hop is under way: ONE is no way out any more
        device.gate.set()
        (drawn,) = await drawing
        assert drawn.plan == SOONEST
        assert np.array_equal(drawn.pixels, picture_of(replace(sample, plan=SOONEST)))

    run(scenario, device)
