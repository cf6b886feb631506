"""The decisions behind promises: offers and terms in, one offer or a refusal out."""

import math
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from diffusion.frontier import Measure
from diffusion.plans import student_plan
from server.failures import DeadlineUnattainable
from server.promises import (
    CAPS,
    DWELL_SECONDS,
    Brownout,
    Choice,
    NothingAllowed,
    Offer,
    Pressure,
    Terms,
    decide,
    economical,
)

STEPS = (1, 2, 3, 4, 8, 16, 32, 64, 512)


def offer(steps: int, distance: float | None, seconds: float = 0.0, spread: float = 0.0) -> Offer:
    """An offer of this many steps."""
    measured = None if distance is None else Measure(mean=distance, spread=spread)
    return Offer(steps, student_plan(f"student-{steps}", steps), measured, steps > 16, seconds)


seconds = st.floats(0.001, 10)
offers = st.lists(
    st.builds(offer, st.sampled_from(STEPS), st.none() | st.floats(0.5, 50), seconds, st.floats(0, 2)),
    min_size=1,
    max_size=12,
)
bounds = st.sampled_from([(1, math.inf), (1, 16), (1, 3), (2, 512), (2, 8), (4, math.inf)])
deadlines = st.just(math.inf) | seconds
terms = st.builds(
    lambda consent, bounds, deadline: Terms(consent, bounds[0], bounds[1], deadline), st.booleans(), bounds, deadlines
)
pressures = st.builds(Pressure, st.sampled_from(CAPS), st.sampled_from((math.inf, 0, 1, 3, 10, 100)))


def decided(offers: list[Offer], asked: Offer | None, terms: Terms, pressure: Pressure) -> Choice | None:
    """The decision, None for a refusal that is right: nothing that is allowed was in time."""
    allowed = [o for o in offers if o.frechet and terms.min_steps <= o.steps <= terms.max_steps]
    if asked:
        allowed = [asked, *(o for o in allowed if terms.consent and o.steps < asked.steps)]
    assume(allowed)
    try:
        return decide(offers, asked=asked, terms=terms, pressure=pressure)
    except DeadlineUnattainable as refusal:
        least = min(o.seconds for o in allowed)
        assert least > terms.deadline_seconds
        assert least * 1000 <= refusal.min_feasible_ms <= least * 1000 + 1
        return None


@given(offers=offers, terms=terms, pressure=pressures)
def test_auto_gives_a_measured_position_within_the_limits_that_is_not_late(
    offers: list[Offer], terms: Terms, pressure: Pressure
) -> None:
    choice = decided(offers, None, terms, pressure)
    if choice is None:
        return
    assert choice.offer in offers and choice.offer.frechet
    assert terms.min_steps <= choice.offer.steps <= terms.max_steps
    assert choice.offer.seconds <= terms.deadline_seconds
    assert terms.consent or choice.reason is None


@given(offers=offers, asked=st.builds(offer, st.sampled_from(STEPS), st.none() | st.floats(0.5, 50), seconds),
       terms=terms, pressure=pressures)  # fmt: skip
def test_explicit_steps_are_given_or_refused_without_consent_and_never_exceeded_with_it(
    offers: list[Offer], asked: Offer, terms: Terms, pressure: Pressure
) -> None:
    choice = decided(offers, asked, terms, pressure)
    if choice is None:
        return
    assert choice.offer.seconds <= terms.deadline_seconds
    if not terms.consent:
        assert choice == Choice(asked, None)
    assert (choice.reason is None) == (choice.offer is asked)
    if choice.reason:
        assert terms.min_steps <= choice.offer.steps < asked.steps and choice.offer.frechet
    if choice.reason == "brownout":
        assert asked.steps > pressure.cap
    if choice.reason == "deadline":
        assert asked.seconds > terms.deadline_seconds
    if choice.reason == "queue":
        assert asked.steps > pressure.room


@given(offers=offers, terms=terms, deadline=seconds, later=seconds)
def test_a_later_deadline_never_gives_a_worse_image(
    offers: list[Offer], terms: Terms, deadline: float, later: float
) -> None:
    sooner = decided(offers, None, replace(terms, deadline_seconds=deadline), Pressure())
    patient = decided(offers, None, replace(terms, deadline_seconds=deadline + later), Pressure())
    if sooner:
        assert patient and patient.offer.distance <= sooner.offer.distance


@given(offers=offers, terms=terms, deadline=seconds, later=seconds, pressure=pressures)
def test_nor_in_a_crowd_where_fewer_steps_take_less_time(
    offers: list[Offer], terms: Terms, deadline: float, later: float, pressure: Pressure
) -> None:
    rising = [replace(o, seconds=0.01 * o.steps) for o in offers]
    sooner = decided(rising, None, replace(terms, deadline_seconds=deadline), pressure)
    patient = decided(rising, None, replace(terms, deadline_seconds=deadline + later), pressure)
    if sooner:
        assert patient and patient.offer.distance <= sooner.offer.distance


@given(offers=offers, terms=terms, cap=st.sampled_from(CAPS))
def test_a_brown_out_lowers_to_its_cap_where_anything_is_that_low_and_refuses_nobody(
    offers: list[Offer], terms: Terms, cap: float
) -> None:
    calm = decided(offers, None, terms, Pressure())
    crowded = decided(offers, None, terms, Pressure(cap=cap))
    assert (calm is None) == (crowded is None)
    if calm is None or crowded is None:
        return
    if not terms.consent or calm.offer.steps <= cap:
        assert crowded == calm
        return
    in_time = [
        o.steps
        for o in offers
        if o.frechet and terms.min_steps <= o.steps <= terms.max_steps and o.seconds <= terms.deadline_seconds
    ]
    assert crowded.offer.steps <= max(cap, min(in_time))
    assert crowded.reason == ("brownout" if crowded.offer.steps < calm.offer.steps else None)


@given(offers=offers)
def test_the_economical_position_is_a_students_and_near_the_best_of_them(offers: list[Offer]) -> None:
    measured = [o for o in offers if o.frechet]
    assume(any(not o.by_teacher for o in measured))
    students = [o for o in measured if not o.by_teacher]
    chosen = economical(measured)
    finest = min(o.distance for o in students)
    assert chosen in students
    assert chosen.distance <= max(1.05 * finest, finest + max(o.frechet.spread for o in students if o.frechet))
    assert all(o.steps >= chosen.steps for o in students if o.distance == finest)


def test_examples_of_the_dial() -> None:
    dial = [offer(1, 15.5, 0.01), offer(2, 9, 0.02), offer(4, 6, 0.04), offer(8, 5.1, 0.08), offer(16, 5, 0.16)]
    dial.append(offer(32, 4.5, 0.32))

    def steps(deadline: float = math.inf, cap: float = math.inf) -> int:
        return decide(
            dial, asked=None, terms=Terms(True, deadline_seconds=deadline), pressure=Pressure(cap)
        ).offer.steps

    assert steps() == 8  # within 5 % of 16, and no teacher
    assert [steps(deadline) for deadline in (0.015, 0.05, 0.1, 1.0)] == [1, 4, 8, 32]
    assert [steps(1.0, cap) for cap in CAPS] == [32, 16, 8, 4, 2, 1]
    with pytest.raises(DeadlineUnattainable) as refusal:
        steps(0.005)
    assert refusal.value.min_feasible_ms == 10


def test_what_allows_no_measured_position_is_an_error() -> None:
    with pytest.raises(NothingAllowed):
        decide([offer(4, None)], asked=None, terms=Terms(False), pressure=Pressure())
    with pytest.raises(NothingAllowed):
        decide([offer(4, 2.0)], asked=None, terms=Terms(False, min_steps=5), pressure=Pressure())


@given(
    backlogs=st.lists(st.tuples(st.floats(0, 10), st.floats(0, 2)), max_size=40),
    low=st.floats(0.1, 2),
    gap=st.floats(0.1, 5),
)
def test_the_level_rises_above_the_high_watermark_falls_below_the_low_one_and_rests_between(
    backlogs: list[tuple[float, float]], low: float, gap: float
) -> None:
    brownout, now, changed = Brownout(high_seconds=low + gap, low_seconds=low), 0.0, -math.inf
    for backlog, pause in backlogs:
        now += pause
        before = brownout.level
        brownout.observe(backlog, now)
        if backlog <= 0:
            assert brownout.level == 0
        elif low <= backlog <= low + gap or now - changed < DWELL_SECONDS:
            assert brownout.level == before
        elif backlog > low + gap:
            assert brownout.level == min(before + 1, len(CAPS) - 1)
        else:
            assert brownout.level == max(before - 1, 0)
        assert brownout.cap == CAPS[brownout.level]
        changed = now if brownout.level != before else changed
