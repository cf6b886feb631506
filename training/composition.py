"""Composed plans: an image may take its hops on different students, because segment boundaries nest.

A student of k segments at time t takes the DDIM hop to the start of its segment, s = (ceil(t k) - 1) / k.  So a plan is
a sequence of students, and its times follow.  Times are exact fractions here and exact quotients in a plan.
"""

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from fractions import Fraction

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

    def finish(self, t: Fraction) -> tuple["Student", ...]:
        """Return the hops that take an image from t to 0 on this student alone."""
        return (self,) * math.ceil(t * self.segments)


Composition = tuple[Student, ...]
"""The students of a plan, or of its first hops, in the order of the hops."""


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
    t = NOISE
    for student in composition:
        t = student.start(t)
    return t


def hops_of(composition: Composition) -> Iterator[Hop]:
    """Return the hops of a composition, from noise."""
    t = NOISE
    for student in composition:
        s = student.start(t)
        yield Hop(member=student.member, t=float(t), s=float(s), segments=student.segments if student.whole else None)
        t = s


def compose(composition: Composition) -> Plan:
    """Return the plan of a composition that ends at 0.  Raises ValueError for one that does not."""
    return Plan(hops=tuple(hops_of(composition)))


def composition_of(plan: Plan, students: tuple[Student, ...]) -> Composition | None:
    """Return the students of a plan's hops, or None for a plan that is not composed of them."""
    members = {(student.member, student.segments if student.whole else None): student for student in students}
    found = [members.get((hop.member, hop.segments)) for hop in plan.hops]
    composition = tuple(student for student in found if student)
    return composition if tuple(hops_of(composition)) == plan.hops else None


def compositions(students: tuple[Student, ...], evaluations: int, t: Fraction = NOISE) -> Iterator[Composition]:
    """Return every composition of so many evaluations that takes an image from t to 0."""
    for student in students:
        s = student.start(t)
        if s == 0 and evaluations == 1:
            yield (student,)
        elif s > 0 and evaluations > 1:
            yield from ((student, *rest) for rest in compositions(students, evaluations - 1, s))


def words(plan: Plan, students: tuple[Student, ...]) -> str:
    """Say a composed plan for people: "4: 1→¾→½, then 2: ½→0"; long runs of one student only by their ends."""
    composition = composition_of(plan, students)
    if composition is None:
        return f"{plan.members[0]}, {len(plan.hops)} hops"
    parts, t, at = [], NOISE, 0
    while at < len(composition):
        student, times = composition[at], [t]
        while at < len(composition) and composition[at] == student:
            times.append(student.start(times[-1]))
            at += 1
        t = times[-1]
        shown = (
            "→".join(map(_sign, times)) if len(times) < 6 else f"{_sign(times[0])}→…→{_sign(t)} ({len(times) - 1} hops)"
        )
        parts.append(f"{'whole ' if student.whole else ''}{student.segments}: {shown}")
    return ", then ".join(parts)


def _sign(t: Fraction) -> str:
    return _SIGNS.get(t, str(t))
