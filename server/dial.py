"""The dial: from a request's wishes to samples, and from a family to what clients may wish for."""

import secrets
from dataclasses import dataclass

from diffusion.condition import ConditionError
from diffusion.family import Family
from diffusion.plans import Plan
from server.failures import FieldRefused, ModelUnknown, StepsNotServed
from server.samples import Sample
from server.schemas import MAX_DRAWN_SEED, GenerateRequest, Measured, ModelInfo, PositionInfo

FAVOURITE_STEPS = 4
"""Default dial position where it is served: the fewest steps at which consistency students look like their teacher."""


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


class Dial:
    """The positions of one family, and which requests they can serve."""

    def __init__(self, family: Family, *, max_images: int, max_evaluations: int):
        self._family = family
        self._max_images = max_images
        self._max_evaluations = max_evaluations
        # a Heun hop is two evaluations, a wave is one: such a plan waits until waves know half hops
        self.positions = {
            steps: plan for steps, plan in family.positions.items() if all(hop.rule != "heun" for hop in plan.hops)
        }
        """Dial position -> plan, rising."""

    @property
    def default_steps(self) -> int:
        """The position of a request that names none."""
        return min(self.positions, key=lambda steps: (abs(steps - FAVOURITE_STEPS), steps))

    def turn(self, request: GenerateRequest) -> Wish:
        """Return what to draw.

        Raises ModelUnknown, StepsNotServed, or FieldRefused with the field's name.
        """
        if request.model not in (None, self._family.name):
            raise ModelUnknown(f"no model of that name is served; served is {self._family.name!r}")
        steps = self._steps(request)
        plan = self.positions[steps]
        if request.n > self._max_images:
            raise FieldRefused("n", f"at most {self._max_images} images can be asked for at once")
        if request.n * len(plan.hops) > self._max_evaluations:
            raise FieldRefused("n", f"{request.n} images of {steps} steps are more than this server's queue can hold")
        seed = secrets.randbelow(MAX_DRAWN_SEED + 1) if request.seed is None else request.seed
        condition, guidance = self._condition(request), self._guidance(request, plan)
        exact = request.determinism == "exact"
        samples = (Sample(plan, condition, seed, index, guidance, exact) for index in range(request.n))
        return Wish(self._family.name, tuple(samples), steps, "+".join(plan.members), seed)

    def label(self, request: GenerateRequest) -> str:
        """Return the metrics' label of a request: a served position, or "none", so that clients cannot invent values."""
        steps = request.steps or request.num_inference_steps or self.default_steps
        return str(steps) if steps in self.positions else "none"

    def describe(self) -> ModelInfo:
        """Return the family as clients see it."""
        manifest = self._family.manifest
        teacher = manifest.teacher.name if manifest.teacher else None
        return ModelInfo(
            name=manifest.name,
            description=manifest.description,
            image={"height": manifest.resolution, "width": manifest.resolution, "channels": manifest.channels},
            conditioning=manifest.conditioning.model_dump(mode="json"),
            default_steps=self.default_steps,
            teacher_guidance=manifest.guidance,
            student_guidance={m.name: m.guidance for m in (*manifest.students, manifest.whole) if m},
            positions=[self._position(steps, plan, teacher) for steps, plan in self.positions.items()],
            licence=manifest.licence,
        )

    def _steps(self, request: GenerateRequest) -> int:
        steps = request.num_inference_steps if request.steps is None else request.steps
        if request.num_inference_steps not in (None, steps):
            raise FieldRefused("num_inference_steps", f"it is another name for steps, which is {steps}; give one")
        if steps == "auto":
            raise FieldRefused("steps", 'steps: "auto" is not offered yet; name a position of the dial')
        steps = self.default_steps if steps is None else steps
        assert isinstance(steps, int)
        if steps not in self.positions:
            raise StepsNotServed(steps, tuple(self.positions))
        return steps

    def _condition(self, request: GenerateRequest) -> tuple[int, ...]:
        try:
            return self._family.manifest.conditioning.encode(prompt=request.prompt, label=request.label)
        except ConditionError as error:
            raise FieldRefused(error.field, str(error)) from error

    def _guidance(self, request: GenerateRequest, plan: Plan) -> float:
        try:
            return self._family.guidance(plan, request.guidance)
        except ValueError as error:
            raise FieldRefused("guidance", str(error)) from error

    def _position(self, steps: int, plan: Plan, teacher: str | None) -> PositionInfo:
        return PositionInfo(
            steps=steps,
            student="+".join(plan.members),
            kind="teacher" if plan.members == (teacher,) else "student",
            measured=Measured.model_validate(found) if (found := self._family.measured(plan)) else None,
        )
