"""Promises over HTTP, in front of a device that draws names and whose waves are believed to take a known time."""

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

from diffusion.family import Family
from diffusion.frontier import Measure, Rescue
from diffusion.plans import Hop, Plan, student_plan
from server.account import account_headers, account_of
from server.dial import Wish
from server.pace import DECODER, Timing
from server.promises import DWELL_SECONDS
from server.samples import Sample
from server.schemas import Timings
from server.studio import Picture
from tests.server.desk import Desk, blamed, problem, value
from tests.server.processes import ServerProcess, wait_until

PROMPT = {"prompt": "a red star on mint", "seed": 7}
MEMBERS = ("student-1", "student-2", "student-4", "teacher")
PATIENT = {"deadline_ms": 10_000_000}


class SlowDesk(Desk):
    """A desk whose device is believed to take so many seconds for a wave; really it takes none, unless it is held."""

    def __init__(self, family: Family, wave_seconds: float, **settings: Any):
        super().__init__(family, **settings)
        sizes = [(member, guided, rows) for member in MEMBERS for guided in (False, True) for rows in (1, 16)]
        self.device.timings = tuple(Timing(*size, wave_seconds) for size in sizes)
        self.threads = ThreadPoolExecutor(8)

    def __exit__(self, *exception: Any) -> None:
        self.device.gate.set()
        self.threads.shutdown()
        super().__exit__(*exception)

    def estimate(self, **wish: Any) -> Any:
        """POST /estimate."""
        answer = self.client.post("/estimate", json=PROMPT | wish)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def ask_later(self, **wish: Any) -> "Future[Any]":
        """POST /generate from another thread, and wait until the work is accepted."""
        before = value(self, "stepdial_pending_evaluations")
        asked = self.threads.submit(self.ask, PROMPT | wish)
        wait_until(lambda: value(self, "stepdial_pending_evaluations") > before)
        return asked


@pytest.fixture
def slow(family: Family) -> Iterator[SlowDesk]:
    """A desk whose waves are believed to take a second."""
    with SlowDesk(family, 1.0) as desk:
        yield desk


def test_auto_without_a_deadline_is_the_fewest_steps_that_are_about_as_good_as_the_best_student(slow: SlowDesk) -> None:
    answer = slow.ask(PROMPT | {"steps": "auto"}).json()
    assert (answer["steps_requested"], answer["steps_used"], answer["degraded"]) == ("auto", 4, False)
    assert answer["deadline_met"] is None
    assert slow.estimate(steps="auto", max_steps=3)["steps"] == 2
    assert slow.estimate(max_steps=1)["steps"] == 1  # limits mean auto
    assert slow.estimate(min_steps=5)["steps"] == 256  # the teacher's, within 5 % of 512 steps


def test_decoding_counts_where_images_are_drawn_as_latents(family: Family) -> None:
    desk = SlowDesk(family, 1.0)
    desk.device.timings += (Timing(DECODER, False, 1, 5.0),)
    with desk:
        at_one_step = desk.estimate(n=2)["positions"][0]
        assert at_one_step["device_seconds"] == pytest.approx(1.2 * (1 + 2 * 5))
        refusal = problem(desk.ask(PROMPT | {"steps": "auto", "deadline_ms": 3000}), 429)
        assert refusal["min_feasible_ms"] > 7000


def test_auto_with_a_deadline_is_the_best_that_can_be_ready(slow: SlowDesk) -> None:
    chosen = [slow.estimate(steps="auto", deadline_ms=ms)["steps"] for ms in (1500, 3000, 6000, 50_000, 10_000_000)]
    assert chosen == [1, 2, 4, 32, 512]
    assert slow.estimate(deadline_ms=50_000, max_steps=16)["steps"] == 4
    assert slow.estimate(deadline_ms=50_000, n=3)["steps"] == 32  # one wave holds them all
    met = value(slow, "stepdial_deadlines_total", steps="2", result="met")
    answer = slow.ask(PROMPT | {"deadline_ms": 3000})
    assert answer.json()["steps_used"] == 2 and answer.json()["deadline_met"] is True
    assert answer.headers["x-steps-used"] == "2" and answer.headers["x-degraded"] == "false"
    assert answer.headers["x-steps-requested"] == str(answer.json()["steps_requested"])
    assert answer.headers["x-deadline-met"] == "true"
    assert value(slow, "stepdial_deadlines_total", steps="2", result="met") == met + 1
    assert value(slow, "stepdial_requests_total", steps="auto", outcome="ok") >= 1


def test_a_deadline_that_even_the_fewest_steps_would_miss_is_refused_with_one_that_could_be_kept(
    slow: SlowDesk,
) -> None:
    refused = value(slow, "stepdial_rejected_total", reason="deadline_unattainable")
    for wish, steps in (({}, 1), ({"min_steps": 2}, 2), ({"steps": 4}, 4), ({"steps": 4, "allow_degrade": True}, 1)):
        answer = slow.ask(PROMPT | wish | {"deadline_ms": 300})
        least = problem(answer, 429)["min_feasible_ms"]
        assert 1000 * steps <= least <= 1500 * steps
        assert answer.headers["x-should-retry"] == "false"
        assert slow.estimate(**wish, deadline_ms=least + 100)["steps"] == steps
    assert slow.device.waves == []
    assert value(slow, "stepdial_rejected_total", reason="deadline_unattainable") == refused + 4


def test_explicit_steps_are_lowered_for_a_deadline_only_with_consent(slow: SlowDesk) -> None:
    late = PROMPT | {"steps": 4, "deadline_ms": 3000}
    problem(slow.ask(late), 429)
    problem(slow.ask(late | {"allow_degrade": True, "min_steps": 3}), 429)
    before = value(slow, "stepdial_degraded_total", reason="deadline")
    answer = slow.ask(late | {"allow_degrade": True})
    assert answer.json()["steps_requested"] == 4 and answer.json()["steps_used"] == 2
    assert answer.json()["degraded"] is True and answer.json()["degrade_reason"] == "deadline"
    assert answer.headers["x-degraded"] == "true" and answer.headers["x-degrade-reason"] == "deadline"
    assert value(slow, "stepdial_degraded_total", reason="deadline") == before + 1


def test_an_estimate_draws_nothing_and_tells_what_each_position_would_take(slow: SlowDesk) -> None:
    told = slow.estimate(steps=4, deadline_ms=50_000)
    assert slow.device.waves == []
    assert (told["model"], told["steps"], told["student"], told["degraded"]) == ("tiny", 4, "student-4", False)
    assert [position["steps"] for position in told["positions"]] == [1, 2, 4, 32, 64, 128, 256, 512]
    for position in told["positions"]:
        parts = [position[f"{part}_seconds"] for part in ("queue", "device", "encode")]
        assert position["total_seconds"] == pytest.approx(sum(parts))
        assert position["device_seconds"] >= position["steps"]
        assert position["feasible"] == (position["steps"] <= 32)
        assert position["measured"]["frechet"]["mean"] == pytest.approx(40 / position["steps"] + 2)
    refused = slow.estimate(deadline_ms=300)
    assert refused["steps"] is None and refused["min_feasible_ms"] >= 1000
    assert blamed(slow.client.post("/estimate", json=PROMPT | {"steps": 3})) == ["/steps"]


def test_an_estimate_counts_the_work_that_waits(slow: SlowDesk) -> None:
    slow.device.gate.clear()
    asked = slow.ask_later(steps=32)
    told = slow.estimate(steps="auto", deadline_ms=6000)
    assert told["steps"] in (1, 2)  # alone it were 4
    assert all(position["queue_seconds"] > 0 for position in told["positions"])
    slow.device.gate.set()
    assert asked.result().json()["steps_used"] == 32


def test_a_deadline_that_passes_while_waiting_is_a_504_and_frees_the_work(family: Family) -> None:
    with SlowDesk(family, 0.001) as desk:
        desk.device.gate.clear()
        missed = value(desk, "stepdial_deadlines_total", steps="4", result="missed")
        answer = desk.ask(PROMPT | {"steps": 4, "deadline_ms": 80})
        assert problem(answer, 504)["deadline_met"] is False
        assert value(desk, "stepdial_deadlines_total", steps="4", result="missed") == missed + 1
        assert value(desk, "stepdial_pending_evaluations") == 0
        desk.device.gate.set()
        assert desk.ask().status_code == 200


def test_a_brown_out_lowers_those_who_consent_and_nobody_else(family: Family) -> None:
    with SlowDesk(family, 1.0, brownout_high_seconds=5.0, brownout_low_seconds=1.0) as desk:
        calm = desk.ask(PROMPT | {"steps": 4, "allow_degrade": True}).json()
        assert calm["steps_used"] == 4 and calm["degraded"] is False
    with SlowDesk(searched(family), 1.0, brownout_high_seconds=5.0, brownout_low_seconds=1.0) as desk:
        desk.device.gate.clear()
        early = desk.ask_later(steps=4, allow_degrade=True)
        waiting = desk.ask_later(steps=64)
        lowered = desk.ask_later(steps=32, allow_degrade=True)
        wait_until(lambda: value(desk, "stepdial_brownout_level") > 0)
        told = desk.estimate(steps="auto", **PATIENT)
        assert told["steps"] <= 4 and told["degraded"] and told["degrade_reason"] == "brownout"
        assert desk.estimate(steps=32)["steps"] == 32
        assert desk.estimate(steps="auto", allow_degrade=False, **PATIENT)["steps"] == 512
        assert desk.estimate(steps="auto", min_steps=32, **PATIENT)["steps"] == 32  # refuses nobody
        untouched = desk.ask_later(steps=32)
        wait_until(lambda: value(desk, "stepdial_brownout_level") == 5)  # it goes on while the backlog stays
        assert desk.estimate(steps="auto")["steps"] == 1
        desk.device.gate.set()
        for asked, requested, used in ((lowered, 32, 3), (early, 4, 3)):  # at the door and on the way, and on the way
            told = asked.result().json()
            assert (told["steps_requested"], told["steps_used"]) == (requested, used)
            assert told["degraded"] is True and told["degrade_reason"] == "brownout"
        for asked, steps in ((untouched, 32), (waiting, 64)):
            assert asked.result().json()["steps_used"] == steps and not asked.result().json()["degraded"]
        wait_until(lambda: value(desk, "stepdial_brownout_level") == 0)
        assert desk.estimate(steps="auto")["degraded"] is False


def test_who_consents_is_lowered_before_a_full_queue_refuses(family: Family) -> None:
    with SlowDesk(family, 0.001, max_evaluations=64) as desk:
        desk.device.gate.clear()
        waiting = desk.ask_later(steps=32), desk.ask_later(steps=4, n=7)
        problem(desk.ask(PROMPT | {"steps": 32}), 503)
        lowered = desk.ask_later(steps=32, allow_degrade=True)
        assert value(desk, "stepdial_pending_evaluations") == 64
        desk.device.gate.set()
        assert lowered.result().json()["degrade_reason"] == "queue" and lowered.result().json()["steps_used"] == 4
        assert {asked.result().status_code for asked in waiting} == {200}


def searched(family: Family) -> Family:
    """The family with plans that a search found: a better one of 4 evaluations, and one of 3."""
    assert family.frontier
    four = Plan(hops=(*student_plan("student-4", 4).hops[:3], Hop(member="student-1", t=0.25, s=0.0)))
    three = Plan(hops=(*student_plan("student-4", 4).hops[:2], Hop(member="student-2", t=0.5, s=0.0)))
    first = next(position for position in family.frontier.positions if position.steps == 4)
    rows = [
        first.model_copy(update={"steps": plan.steps, "plan": plan, "source": "searched", "frechet": frechet})
        for plan, frechet in ((three, Measure(mean=14, spread=0.1)), (four, Measure(mean=9, spread=0.1)))
    ]
    rescue = Rescue(
        steps=4,
        plan=three,
        samples=100,
        seeds=(0,),
        frechet=rows[0].frechet,
        floor=first.floor,
        measured=first.measured,
    )
    frontier = family.frontier.model_copy(
        update={"positions": (*family.frontier.positions, *rows), "rescues": (rescue,)}
    )
    return Family(family.folder, family.manifest, frontier)


def test_a_way_that_was_measured_on_other_numbers_of_images_is_not_taken_for_the_best(family: Family) -> None:
    found = searched(family)
    assert found.frontier
    *others, four = found.frontier.positions
    few = found.frontier.model_copy(update={"positions": (*others, four.model_copy(update={"samples": 10}))})
    with Desk(Family(family.folder, family.manifest, few)) as desk:
        assert desk.ask(PROMPT | {"steps": 4}).json()["student"] == "student-4"
        assert desk.ask(PROMPT | {"steps": 4, "plan": "auto"}).json()["student"] == "student-4"
        assert desk.ask(PROMPT | {"steps": 4, "plan": "searched"}).json()["student"] == "student-4+student-1"


def test_a_plan_that_draws_what_was_asked_for_less_often_is_not_the_default(family: Family) -> None:
    found = searched(family)
    assert found.frontier
    *others, four = found.frontier.positions
    obeyed = {"agreement": Measure(mean=0.5, spread=0.01)}
    less = found.frontier.model_copy(update={"positions": (*others, four.model_copy(update=obeyed))})
    with Desk(Family(family.folder, family.manifest, less)) as desk:
        assert desk.ask(PROMPT | {"steps": 4}).json()["student"] == "student-4"
        assert desk.ask(PROMPT | {"steps": 4, "plan": "auto"}).json()["student"] == "student-4+student-1"


def test_asking_what_would_be_drawn_moves_no_brown_out(family: Family) -> None:
    with SlowDesk(family, 1.0, brownout_high_seconds=5.0, brownout_low_seconds=1.0) as desk:
        desk.device.gate.clear()
        waiting = desk.ask_later(steps=32)
        wait_until(lambda: value(desk, "stepdial_pending_evaluations") == 32)
        for _ in range(4):
            estimate = desk.client.post("/estimate", json=PROMPT | {"steps": "auto"}).json()
            assert estimate["degraded"] is False and value(desk, "stepdial_brownout_level") == 0
            time.sleep(DWELL_SECONDS * 1.1)
        desk.device.gate.set()
        assert waiting.result().status_code == 200


def test_plan_says_which_networks_take_the_steps(family: Family) -> None:
    with Desk(searched(family)) as desk:
        students = {
            (steps, plan): desk.ask(PROMPT | {"steps": steps} | ({"plan": plan} if plan else {})).json()["student"]
            for steps in (3, 4)
            for plan in (None, "dedicated", "searched", "auto")
        }
        assert {students[3, plan] for plan in (None, "dedicated", "searched", "auto")} == {"student-4+student-2"}
        assert students[4, "dedicated"] == "student-4"
        assert students[4, None] == students[4, "searched"] == students[4, "auto"] == "student-4+student-1"
        assert desk.ask(PROMPT | {"steps": "auto"}).json()["student"] == "student-4+student-1"
        assert desk.ask(PROMPT | {"steps": "auto", "plan": "dedicated"}).json()["student"] == "student-4"
        assert blamed(desk.ask(PROMPT | {"steps": 2, "plan": "searched"})) == ["/plan"]


def test_an_image_in_flight_ends_on_a_coarser_student_where_that_was_consented_and_measured(family: Family) -> None:
    with SlowDesk(searched(family), 0.5) as desk:
        for consent, steps in ((True, 3), (False, 4)):
            desk.device.gate.clear()
            waves = len(desk.device.waves)
            wish = {"steps": 4, "plan": "dedicated", "deadline_ms": 3500, "allow_degrade": consent}
            asked = desk.ask_later(**wish)
            wait_until(lambda waves=waves: len(desk.device.waves) > waves)  # type: ignore[misc]
            time.sleep(1.9)  # what is left of the deadline is too short for three waves more
            desk.device.gate.set()
            told = asked.result().json()
            assert told["steps_used"] == steps and told["degraded"] is consent
            assert told["student"] == ("student-4+student-2" if consent else "student-4")
            assert told["degrade_reason"] == ("deadline" if consent else None)


def test_a_real_server_keeps_the_promises_it_makes_from_times_that_it_measured(real_server: ServerProcess) -> None:
    told = httpx2.post(real_server.url + "/estimate", json=PROMPT | {"deadline_ms": 60_000}).json()
    for position in told["positions"]:
        assert position["device_seconds"] > 0 and position["encode_seconds"] > 0
    fewest, *_, most = told["positions"]  # neighbours may change places on a busy machine
    assert fewest["device_seconds"] < most["device_seconds"]
    answer = real_server.ask(**PROMPT, deadline_ms=60_000, max_steps=4).json()
    assert answer["steps_used"] == 4 and answer["deadline_met"] is True
    refused = real_server.ask(**PROMPT, deadline_ms=0.01)
    assert refused.status_code == 429 and refused.json()["min_feasible_ms"] >= 1


def test_an_image_that_encoding_made_late_is_delivered_and_said_to_be_late(family: Family) -> None:
    sample = Sample(family.positions[4], (1, 1, 1), seed=7)
    wish = Wish("tiny", (sample,), 4, "student-4", 7, 4, None, deadline_seconds=0.05, arrived=0.0)
    late = Timings(queue_seconds=0.0, device_seconds=0.04, encode_seconds=0.02, total_seconds=0.06)
    pictures = [Picture(b"", 7, 0)]
    account = account_of(wish, pictures, late)
    assert account.deadline_met is False and account_headers(account, pictures)["X-Deadline-Met"] == "false"
    in_time = account_of(wish, [Picture(b"", 7, 0)], late.model_copy(update={"total_seconds": 0.05}))
    assert in_time.deadline_met is True and in_time.degraded is False
