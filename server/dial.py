"""The dial: from a request's wishes to samples, and from a family to what clients may wish for."""

import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Literal
from weakref import WeakSet

from diffusion.condition import ConditionError
from diffusion.family import Family
from diffusion.plans import Plan
from server.failures import DeadlineUnattainable, FieldRefused, ModelUnknown, StepsNotServed, shown
from server.outlook import Forecast, Outlook
from server.promises import Choice, NothingAllowed, Offer, Pressure, Reason, Terms, decide
from server.samples import Sample
from server.schemas import (
    MAX_DRAWN_SEED,
    Estimate,
    EstimatedPosition,
    GenerateRequest,
    Measured,
    ModelInfo,
    PositionInfo,
)
from server.ways import Way, of_kind, ways_of

FAVOURITE_STEPS = 4
"""Default dial position where it is served: the fewest steps at which consistency students look like their teacher."""


class Lease:
    """Keeps a family loaded while a wish for it is on its way: until it is released, or nothing refers to it."""

    def __init__(self, leases: WeakSet["Lease"]):
        self._leases = leases
        leases.add(self)

    def release(self) -> None:
        """Let the family go."""
        self._leases.discard(self)


@dataclass(slots=True)
class Meter:
    """What a wish has cost so far."""

    evaluations: int = 0
    """Network evaluations that were begun for it."""

    def add(self, evaluations: int) -> None:
        """Count evaluations that were begun."""
        self.evaluations += evaluations


@dataclass(frozen=True, slots=True)
class Wish:
    """A request that can be drawn."""

    model: str
    """Name of the family."""
    samples: tuple[Sample, ...]
    """One per image; they differ in their index only."""
    steps: int
    """Dial position."""
    student: str
    """Names of the networks that will draw, joined by +."""
    seed: int
    steps_requested: int | Literal["auto"]
    """Dial position that was asked for."""
    reason: Reason | None
    """Why the position is lower than what was asked for; None where it is not."""
    deadline_seconds: float | None
    """Time after its arrival within which the images are wanted, in seconds."""
    arrived: float
    """When the request arrived, on the clock of perf_counter."""
    encode_seconds: float = 0.0
    """How much of the time before its deadline encoding is predicted to take."""
    lease: Lease | None = None
    """Keeps its family on the roster until the wish has been drawn, or dropped."""
    seed_named: bool = False
    """Whether the request named the seed, so that the same images may well be asked for again."""
    meter: Meter = field(default_factory=Meter, compare=False)

    @property
    def deadline(self) -> float | None:
        """When the images are wanted, on the same clock."""
        return None if self.deadline_seconds is None else self.arrived + self.deadline_seconds


@dataclass(frozen=True, slots=True)
class Order:
    """A request that was understood, before it is decided how it is drawn."""

    request: GenerateRequest
    asked: Way | None
    """The way of an explicit `steps`; None for auto."""
    terms: Terms
    condition: tuple[int, ...]
    seed: int


class Dial:
    """The positions of one family, and which requests they can serve."""

    def __init__(self, family: Family, outlook: Outlook, *, max_images: int, max_evaluations: int):
        self._family = family
        self._outlook = outlook
        self._max_images = max_images
        self._max_evaluations = max_evaluations
        self._ways = ways_of(family)
        self.positions = {way.steps: way.plan for way in self._ways if way.is_default}
        """Dial position -> the plan it runs by default, rising."""

    @property
    def default_steps(self) -> int:
        """The position of a request that names none."""
        return min(self.positions, key=lambda steps: (abs(steps - FAVOURITE_STEPS), steps))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image, in pixels."""
        manifest = self._family.manifest
        return manifest.resolution, manifest.resolution, manifest.channels

    def turn(self, request: GenerateRequest) -> Wish:
        """Return what to draw.

        Raises ModelUnknown, StepsNotServed, FieldRefused with the field's name, or DeadlineUnattainable.
        """
        arrived, order = perf_counter(), self._understand(request)
        if order.terms.consent:
            self._outlook.look()
        ways = [order.asked] if order.asked and not order.terms.consent else self._open_to(request)
        forecasts = self._forecasts(order, ways) if request.deadline_ms else {}
        choice = self._choose(order, ways, forecasts)
        plan = choice.offer.plan
        return Wish(
            model=self._family.name,
            samples=self._samples(order, plan),
            steps=choice.offer.steps,
            student="+".join(plan.members),
            seed=order.seed,
            steps_requested=order.asked.steps if order.asked else "auto",
            reason=choice.reason,
            deadline_seconds=request.deadline_ms and request.deadline_ms / 1000,
            arrived=arrived,
            encode_seconds=forecasts[plan].encode_seconds if forecasts else 0.0,
            seed_named=request.seed is not None,
        )

    def repeat(self, request: GenerateRequest, plan: Plan) -> Wish:
        """Return what to draw of a request whose plan and seed were decided before, whatever has been measured since.

        Raises FieldRefused.
        """
        self._check_room(request, plan.steps)
        seed = 0 if request.seed is None else request.seed
        order = Order(request, None, Terms(consent=False), self._condition(request), seed)
        return Wish(
            model=self._family.name,
            samples=self._samples(order, plan),
            steps=plan.steps,
            student="+".join(plan.members),
            seed=seed,
            steps_requested=plan.steps,
            reason=None,
            deadline_seconds=None,
            arrived=perf_counter(),
        )

    def estimate(self, request: GenerateRequest) -> Estimate:
        """Return what `turn` would choose now, and what each position would take. Raises what `turn` raises, but for deadlines."""
        order, ways = self._understand(request), self._open_to(request)
        forecasts = self._forecasts(order, ways)
        choice: Choice | None = None
        least: int | None = None
        try:
            choice = self._choose(order, ways, forecasts)
        except DeadlineUnattainable as refusal:
            least = refusal.min_feasible_ms
        return Estimate(
            model=self._family.name,
            steps_requested=order.asked.steps if order.asked else "auto",
            steps=choice.offer.steps if choice else None,
            student="+".join(choice.offer.plan.members) if choice else None,
            degraded=choice is not None and choice.reason is not None,
            degrade_reason=choice.reason if choice else None,
            min_feasible_ms=least,
            positions=[self._estimated(order, way, forecasts[way.plan]) for way in ways],
        )

    def label(self, request: GenerateRequest) -> str:
        """Return the metrics' label of a request: a served position, "auto", or "none", so that clients invent no values."""
        steps = _wished(request) or self.default_steps
        return str(steps) if steps == "auto" or steps in self.positions else "none"

    def describe(self) -> ModelInfo:
        """Return the family as clients see it."""
        manifest = self._family.manifest
        return ModelInfo(
            name=manifest.name,
            description=manifest.description,
            image={"height": manifest.resolution, "width": manifest.resolution, "channels": manifest.channels},
            conditioning=manifest.conditioning.model_dump(mode="json"),
            default_steps=self.default_steps,
            teacher_guidance=manifest.guidance,
            student_guidance={m.name: m.guidance for m in (*manifest.students, manifest.whole) if m},
            student_guidance_range={m.name: m.guidance_range for m in manifest.members if m.guidance_range},
            positions=[_position(way) for way in self._ways if way.is_default],
            licence=manifest.licence,
        )

    def _understand(self, request: GenerateRequest) -> Order:
        if request.model not in (None, self._family.name):
            raise ModelUnknown(f"model {shown(request.model)} is not served; served is {self._family.name!r}")
        if request.num_inference_steps and request.steps not in (None, request.num_inference_steps):
            raise FieldRefused(
                "num_inference_steps",
                f"num_inference_steps is {request.num_inference_steps} and steps is {request.steps}; give one",
            )
        if request.n > self._max_images:
            raise FieldRefused("n", f"n is {request.n}; at most {self._max_images} images can be asked for at once")
        steps = _wished(request) or self.default_steps
        asked = None if steps == "auto" else self._asked(request, steps)
        if asked:
            self._check_room(request, asked.plan.steps)
        terms, condition = _terms(request, asked), self._condition(request)
        seed = secrets.randbelow(MAX_DRAWN_SEED + 1) if request.seed is None else request.seed
        return Order(request, asked, terms, condition, seed)

    def _check_room(self, request: GenerateRequest, steps: int) -> None:
        if steps * request.n > self._max_evaluations:
            most = f"at most {self._max_evaluations} network evaluations fit into this server's queue"
            raise FieldRefused("n", f"n is {request.n}, of {steps} steps each; {most}")

    def _open_to(self, request: GenerateRequest) -> list[Way]:
        """The ways that a request's plan and guidance allow and that the queue could hold."""
        most = self._max_evaluations // request.n
        ways = (way for way in of_kind(self._ways, request.plan or "auto") if way.plan.steps <= most)
        return [way for way in ways if self._allows(request, way)]

    def _asked(self, request: GenerateRequest, steps: int) -> Way:
        """The way of an explicit `steps`. Raises StepsNotServed, FieldRefused."""
        if steps not in self.positions:
            raise StepsNotServed(steps, tuple(self.positions))
        there = [way for way in self._ways if way.steps == steps]
        ways = of_kind(there, request.plan)
        if request.plan is None and not any(self._allows(request, way) for way in ways):
            ways = of_kind(there, "dedicated")  # a default that was searched may not take the guidance that this takes
        if not ways:
            raise FieldRefused(
                "plan", f"plan is searched; of {steps} steps none was measured, allowed are dedicated and auto"
            )
        way = min(ways, key=lambda way: way.rank(request.guidance))
        self._guidance(request, way.plan)
        return way

    def _allows(self, request: GenerateRequest, way: Way) -> bool:
        try:
            self._guidance(request, way.plan)
        except FieldRefused:
            return False
        return True

    def _choose(self, order: Order, ways: Sequence[Way], forecasts: Mapping[Plan, Forecast]) -> Choice:
        offers = [_offer(order, way, forecasts.get(way.plan)) for way in ways]
        pressure = self._outlook.pressure(order.request.n) if order.terms.consent else Pressure()
        asked = next((offer for offer in offers if order.asked and offer.plan == order.asked.plan), None)
        try:
            return decide(offers, asked=asked, terms=order.terms, pressure=pressure)
        except NothingAllowed:
            measured = ", ".join(str(steps) for steps in dict.fromkeys(way.steps for way in self._ways if way.measured))
            sentence = (
                f"auto chooses among positions that were measured ({measured}); this request allows none"
                if measured
                else "auto chooses among positions that were measured, and of this family none was; name a number of steps"
            )
            raise FieldRefused("steps", sentence) from None

    def _forecasts(self, order: Order, ways: Sequence[Way]) -> dict[Plan, Forecast]:
        look, output_format = self._outlook.forecast, order.request.output_format
        return {way.plan: look(self._samples(order, way.plan), self.image_shape, output_format) for way in ways}

    def _samples(self, order: Order, plan: Plan) -> tuple[Sample, ...]:
        request, (guidance, told) = order.request, self._guidance(order.request, plan)
        exact = request.determinism == "exact"
        condition = (*order.condition, *told)
        endings = self._endings(plan, order.terms.min_steps) if order.terms.consent else ()
        return tuple(
            Sample(plan, condition, order.seed, index, guidance, exact, self._family.name, endings)
            for index in range(request.n)
        )

    def _endings(self, plan: Plan, min_steps: int) -> tuple[Plan, ...]:
        """The measured ways to end a plan sooner, with min_steps at least."""
        rescues = self._family.frontier.rescues if self._family.frontier else ()
        return tuple(
            rescue.plan
            for rescue in rescues
            if rescue.plan.hops[0] == plan.hops[0] and min_steps <= rescue.plan.steps < plan.steps
        )

    def _estimated(self, order: Order, way: Way, forecast: Forecast) -> EstimatedPosition:
        in_time = forecast.total_seconds <= order.terms.deadline_seconds
        return EstimatedPosition(
            **_position(way).model_dump(),
            source=way.source,
            queue_seconds=forecast.queue_seconds,
            device_seconds=forecast.device_seconds,
            encode_seconds=forecast.encode_seconds,
            total_seconds=forecast.total_seconds,
            feasible=in_time and way.plan.steps <= self._outlook.pressure(order.request.n).room,
        )

    def _condition(self, request: GenerateRequest) -> tuple[int, ...]:
        try:
            return self._family.manifest.conditioning.encode(prompt=request.prompt, label=request.label)
        except ConditionError as error:
            raise FieldRefused(error.field, str(error)) from error

    def _guidance(self, request: GenerateRequest, plan: Plan) -> tuple[float, tuple[int, ...]]:
        """The w to guide a plan with, and what its networks are told beside the condition. Raises FieldRefused."""
        try:
            guidance = self._family.guidance(plan, request.guidance)
            return guidance, self._family.told(plan.members[0], request.guidance)
        except ValueError as error:
            raise FieldRefused("guidance", f"{request.guidance:g} is not drawn: {error}") from error


def _wished(request: GenerateRequest) -> int | Literal["auto"] | None:
    """The steps that a request names; auto where it names none but says what it allows."""
    limits = request.deadline_ms, request.min_steps, request.max_steps
    return request.steps or request.num_inference_steps or ("auto" if any(limits) else None)


def _terms(request: GenerateRequest, asked: Way | None) -> Terms:
    """What a request allows. Raises FieldRefused where its limits contradict each other or its steps."""
    least, most = request.min_steps or 1, request.max_steps or math.inf
    if least > most:
        raise FieldRefused("max_steps", f"max_steps is {most}, less than min_steps, which is {least}")
    if asked and not least <= asked.steps <= most:
        field = "min_steps" if asked.steps < least else "max_steps"
        raise FieldRefused(
            field, f"{field} is {getattr(request, field)}, which excludes the {asked.steps} steps that are asked for"
        )
    return Terms(
        consent=asked is None if request.allow_degrade is None else request.allow_degrade,
        min_steps=least,
        max_steps=most,
        deadline_seconds=request.deadline_ms / 1000 if request.deadline_ms else math.inf,
    )


def _offer(order: Order, way: Way, forecast: Forecast | None) -> Offer:
    frechet = way.measured.frechet if way.measured and way.compares_at(order.request.guidance) else None
    seconds = forecast.total_seconds if forecast else 0.0
    return Offer(way.steps, way.plan, frechet, way.source == "teacher", seconds)


def _position(way: Way) -> PositionInfo:
    return PositionInfo(
        steps=way.steps,
        student=way.student,
        kind="teacher" if way.source == "teacher" else "student",
        measured=Measured.model_validate(way.measured) if way.measured else None,
    )
