"""Composed plans: an image may take its hops on different students, because segment boundaries nest.

A student of k segments at time t aims at the start of its segment, (ceil(t k) - 1) / k, and its DDIM hop may land there or
early, at a boundary of another student between there and t, which then goes on.  So a plan is a sequence of students, and
of where they land.  Times are exact fractions here and exact quotients in a plan.
"""

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import NamedTuple

from diffusion.family import FamilyError
from diffusion.manifest import Manifest
from diffusion.plans import Hop, Plan

NOISE = Fraction(1)
"""The time every image starts from."""
_SIGNS = {Fraction(n, d): sign for (n, d), sign in zip(
    [(1, 2), (1, 4), (3, 4), (1, 8), (3, 8), (5, 8), (7, 8)], "½¼¾⅛⅜⅝⅞", strict=True)}  # fmt: skip


@dataclass(frozen=True, order=True)
class Student:
    """A member at one segment count: a student of that count, or the one for the whole dial that is told it."""

    segments: int
    """Number of segments k."""
    whole: bool
    """Whether the network is told the count."""
    member: str
    """Name of the member."""

    @property
    def label(self) -> str:
        """A short name, unique in a family: "student-4", "whole:4"."""
        return f"{self.member}:{self.segments}" if self.whole else self.member

    def start(self, t: Fraction) -> Fraction:
        """Return the start of the segment that t, 0 < t <= 1, lies in; a boundary belongs to the segment below it."""
        return Fraction(math.ceil(t * self.segments) - 1, self.segments)

    def knows(self, t: Fraction) -> bool:
        """Tell whether t, 0 < t <= 1, is one of this student's own boundaries: there it was certainly trained."""
        return (t * self.segments).denominator == 1

    def finish(self, t: Fraction) -> "Composition":
        """Return the hops that take an image from t to 0 on this student alone, from start to start."""
        starts = range(math.ceil(t * self.segments) - 1, -1, -1)
        return tuple(Landing(self, Fraction(start, self.segments)) for start in starts)


class Landing(NamedTuple):
    """A hop of a composed plan: who takes it, and where it lands."""

    student: Student
    s: Fraction
    """The start of the student's segment or, early, a time above it."""


Composition = tuple[Landing, ...]
"""The hops of a plan, or its first ones."""


def students_of(manifest: Manifest) -> tuple[Student, ...]:
    """Return every student of a family at every segment count it knows, coarse to fine, separate ones first."""
    separate = [Student(member.steps, False, member.name) for member in manifest.students if member.steps]
    whole = [
        Student(segments, True, member.name)
        for member in manifest.members
        for segments in member.network.segments
        if segments
    ]
    return tuple(sorted(separate + whole))


def combinable(manifest: Manifest, members: Collection[str] | None = None) -> tuple[Student, ...]:
    """Return the students that one plan may visit: all of a family, or of these members, distilled with one guidance.

    Raises FamilyError where there are none, or of several guidances, told different ranges of it, or over different times.
    """
    students = tuple(s for s in students_of(manifest) if members is None or s.member in members)
    guidances = sorted({manifest.member(student.member).guidance for student in students})
    if len(guidances) != 1:
        found = f"students of guidance {', '.join(f'{w:g}' for w in guidances)}" if guidances else "no student"
        raise FamilyError(f"plans cannot be composed: family {manifest.name!r} has {found}")
    if len({manifest.member(student.member).guidance_range for student in students}) != 1:
        raise FamilyError(
            f"plans cannot be composed: students of family {manifest.name!r} are told different ranges of guidance, or none"
        )
    if len({manifest.member(student.member).guidance_interval for student in students}) != 1:
        raise FamilyError(
            f"plans cannot be composed: guidance was baked into students of family {manifest.name!r} over different times"
        )
    return students


def time_after(composition: Composition) -> Fraction:
    """Return the time that the hops of a composition lead to from noise."""
    return composition[-1].s if composition else NOISE


def hops_of(composition: Composition) -> Iterator[Hop]:
    """Return the hops of a composition, from noise."""
    t = NOISE
    for student, s in composition:
        yield Hop(member=student.member, t=float(t), s=float(s), segments=student.segments if student.whole else None)
        t = s


def compose(composition: Composition) -> Plan:
    """Return the plan of a composition that ends at 0.  Raises ValueError for one that does not."""
    return Plan(hops=tuple(hops_of(composition)))


def composition_of(plan: Plan, students: tuple[Student, ...]) -> Composition | None:
    """Return the composition that a plan is of, or None for one that is not composed of these students."""
    members = {(student.member, student.segments if student.whole else None): student for student in students}
    times = {float(s): s for s in boundaries(students)}
    composition: Composition = ()
    for hop in plan.hops:
        student, s = members.get((hop.member, hop.segments)), times.get(hop.s)
        if student is None or s is None or s < student.start(time_after(composition)):
            return None
        composition = (*composition, Landing(student, s))
    return composition if tuple(hops_of(composition)) == plan.hops else None


@cache
def boundaries(students: tuple[Student, ...]) -> tuple[Fraction, ...]:
    """Return where segments of these students start, from 0."""
    return tuple(sorted({Fraction(n, student.segments) for student in students for n in range(student.segments)}))


@cache
def landings(students: tuple[Student, ...], t: Fraction) -> tuple[Landing, ...]:
    """Return every hop from t by a student that knows t: to the start of its segment, or to a boundary above it."""
    knowing = [student for student in students if student.knows(t)]
    return tuple(Landing(who, s) for who in knowing for s in boundaries(students) if who.start(t) <= s < t)


@cache
def shortest(students: tuple[Student, ...], t: Fraction) -> Composition:
    """Return a way from t to 0 in few hops: on the coarsest who knows each time, but the last on the finest of all."""
    last = Fraction(1, students[-1].segments)
    if t == last:
        return (Landing(students[-1], Fraction(0)),)
    student = next(student for student in students if student.knows(t))
    s = max(student.start(t), last)
    return Landing(student, s), *shortest(students, s)


def compositions(students: tuple[Student, ...], evaluations: int, t: Fraction = NOISE) -> Iterator[Composition]:
    """Return every composition of so many evaluations that takes an image from t to 0, each hop by who knows its time."""
    for landing in landings(students, t):
        if landing.s == 0 and evaluations == 1:
            yield (landing,)
        elif landing.s > 0 and evaluations > 1:
            yield from ((landing, *rest) for rest in compositions(students, evaluations - 1, landing.s))


def words(plan: Plan, students: tuple[Student, ...]) -> str:
    """Say a composed plan for people: "4: 1→¾→½, then 2: ½→0"; long runs of one student only by their ends."""
    composition = composition_of(plan, students)
    if composition is None:
        return f"{plan.members[0]}, {len(plan.hops)} hops"
    parts, t, at = [], NOISE, 0
    while at < len(composition):
        student, times = composition[at].student, [t]
        while at < len(composition) and composition[at].student == student:
            times.append(composition[at].s)
            at += 1
        t = times[-1]
        shown = (
            "→".join(map(_sign, times)) if len(times) < 6 else f"{_sign(times[0])}→…→{_sign(t)} ({len(times) - 1} hops)"
        )
        parts.append(f"{'whole ' if student.whole else ''}{student.segments}: {shown}")
    return ", then ".join(parts)


def _sign(t: Fraction) -> str:
    return _SIGNS.get(t, str(t))
