"""What travels over HTTP. The OpenAPI document is made from these classes."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr

from diffusion.frontier import Measure, Source
from server.images import Format
from server.promises import Reason

MAX_SEED = 2**63 - 1
MAX_DRAWN_SEED = 2**53 - 1
"""Seeds that the server draws survive JavaScript, whose numbers are exact up to here."""

MAX_DEADLINE_MS = 86_400_000
"""A day."""

Steps = Annotated[int, Field(strict=True, ge=1, le=2**31)]


class GenerateRequest(BaseModel):
    """One wish, in one or several images."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        json_schema_extra={"examples": [{"prompt": "a red star on mint", "steps": 4, "seed": 7}]},
    )

    model: Annotated[str | None, Field(strict=True, max_length=200)] = None
    """Family to draw with; default the only one."""
    prompt: Annotated[str | None, Field(strict=True, max_length=1000)] = None
    """What to draw, in words the family knows; for prompt-conditioned families."""
    label: StrictInt | Annotated[StrictStr, Field(max_length=200)] | None = None
    """Class to draw, by name or number; for class-conditional families."""
    steps: Steps | Literal["auto"] | None = None
    """Dial position: network evaluations per image, one of the model's positions. auto: with deadline_ms the best measured
    position that can be ready in time, else the fewest steps that are about as good as the best student. Default: auto
    where deadline_ms, min_steps or max_steps is given, otherwise 4 or the closest to it."""
    num_inference_steps: Steps | None = None
    """Another name for steps."""
    min_steps: Steps | None = None
    """Fewest steps that are acceptable where the server chooses."""
    max_steps: Steps | None = None
    """Most steps that are acceptable where the server chooses."""
    deadline_ms: Annotated[float | None, Field(strict=True, gt=0, le=MAX_DEADLINE_MS, allow_inf_nan=False)] = None
    """Time from the arrival of the request within which the images are wanted, in milliseconds. What cannot be ready by
    then is refused at once (429); what is not drawn by then after all is dropped (504)."""
    plan: Literal["dedicated", "searched", "auto"] | None = None
    """Which networks take the steps. dedicated: the student of so many steps, where there is one. searched: the best plan
    that a search found. auto: whichever was measured to be best. Default: for a number of steps the plan that /models
    lists for it, the best where all that draws it was measured alike; else auto."""
    allow_degrade: StrictBool | None = None
    """Whether a crowded server or a close deadline may give fewer steps than asked for, which the answer then says.
    Default: only with steps: auto."""
    seed: Annotated[int | None, Field(strict=True, ge=0, le=MAX_SEED)] = None
    """Equal seeds give equal images. Default: drawn below 2^53 and returned."""
    n: Annotated[int, Field(strict=True, ge=1)] = 1
    """Number of images; image i of a seed is the same whatever n is."""
    guidance: Annotated[float | None, Field(strict=True, ge=0, le=100, allow_inf_nan=False)] = None
    """Weight w of classifier-free guidance, 0 = none. The teacher's positions take any; a student's is baked in,
    unless it was distilled for a range (student_guidance_range of /models)."""
    determinism: Literal["exact", "fast"] = "exact"
    """exact: the same bytes alone and in any crowd on this kind of device. fast: a lone image need not be padded to
    a batch, and its last bits may depend on the crowd. Exact is the default because that is what a seed promises."""
    output_format: Format = "png"
    """File format of the images."""
    response_format: Literal["b64_json", "file"] = "b64_json"
    """b64_json: JSON with base64 images. file: the bytes of the one image; so does the header `Accept: image/png`."""
    stream: StrictBool = False
    """Answer with server-sent events: previews, images, done; so does the header `Accept: text/event-stream`."""


class ImageData(BaseModel):
    """One image of an answer."""

    b64_json: str
    """The image file, base64."""
    seed: int
    """The request's seed."""
    index: int
    """Which image of that seed this is; asking for the same seed with n = index + 1 draws it again."""


class PreviewData(BaseModel):
    """What an image would be if it ended after this hop."""

    b64_json: str
    """The image file, base64."""
    index: int
    """Which of the request's images."""
    hop: int
    """Hops taken."""
    hops: int
    """Hops that the image takes in all, unless it ends sooner."""


class Timings(BaseModel):
    """Where the time went, in seconds; of several images, the one that was drawn last."""

    queue_seconds: float
    device_seconds: float
    encode_seconds: float
    total_seconds: float


class Account(BaseModel):
    """What was drawn of what was asked for."""

    student: str
    """The networks that drew, in the order of their hops, joined by +."""
    steps_requested: int | Literal["auto"]
    steps_used: int
    """Network evaluations per image; the fewest, if several images ended differently."""
    degraded: bool
    """Whether fewer steps were used than requested, or for auto than without a crowd; never without consent."""
    degrade_reason: Reason | None = None
    """Why: the server is crowded, the deadline was too close, or the queue had no room for more."""
    deadline_met: bool | None = None
    """Whether the images were ready by deadline_ms; None where there was no deadline."""


class GenerateResponse(Account):
    """The images and how they were made."""

    id: str
    created: int
    """Seconds since 1970, UTC."""
    model: str
    data: list[ImageData]
    timings: Timings


class Measured(BaseModel):
    """What a dial position gives and costs; how that was measured is in GET /frontier."""

    model_config = ConfigDict(from_attributes=True)

    frechet: Measure
    """Frechet distance to real images; lower is better."""
    floor: Measure
    """The distance of as many real images: as low as a perfect model would come."""
    agreement: Measure | None
    """Fraction of images that show everything that was asked for."""
    agreement_held_out: Measure | None
    """The same for combinations never drawn in training."""
    latency_ms: Measure
    """One image alone, from seed to pixels, in milliseconds, on the device of the measurement."""
    images_per_second: float
    """Throughput in large batches on that device."""


class PositionInfo(BaseModel):
    """One stop of a model's dial."""

    steps: int
    student: str
    """The networks that draw, in the order of their hops, joined by +."""
    kind: Literal["student", "teacher"]
    measured: Measured | None
    """What the frontier file says about this position; None when it was not measured."""


class EstimatedPosition(PositionInfo):
    """What a way to draw a position would take now, in seconds."""

    source: Source
    """The student of so many steps, the student for the whole dial, the teacher, or a searched plan."""
    queue_seconds: float
    """Waiting, because of the work that is there already."""
    device_seconds: float
    """In waves, as with nobody else there."""
    encode_seconds: float
    total_seconds: float
    feasible: bool
    """Whether the images would be ready by deadline_ms, where there is one, and the queue has room for them."""


class Estimate(BaseModel):
    """What a request would take and get now."""

    model: str
    steps_requested: int | Literal["auto"]
    steps: int | None
    """What would be chosen; None where /generate would refuse because of the deadline."""
    student: str | None
    """The networks that would draw, in the order of their hops, joined by +."""
    degraded: bool
    """Whether that is less than what was asked for."""
    degrade_reason: Reason | None
    min_feasible_ms: int | None
    """The smallest deadline_ms that could be promised now, where the one asked for cannot."""
    positions: list[EstimatedPosition]
    """Every way to draw a position that the request's plan and guidance allow, by rising steps."""


class ModelInfo(BaseModel):
    """A family as clients see it."""

    name: str
    description: str
    """One sentence."""
    image: dict[str, int]
    """Height, width and channels, in pixels."""
    conditioning: dict[str, Any]
    """kind (prompt, label or none), and the words or labels that are known."""
    default_steps: int
    """The dial position of a request that names none."""
    teacher_guidance: float
    """Guidance of the teacher's positions unless a request says otherwise."""
    student_guidance: dict[str, float]
    """Guidance of each student: baked in, or, where student_guidance_range names it, its default."""
    student_guidance_range: dict[str, tuple[float, float]]
    """Students that draw with any guidance of a range, which one evaluation a step then does."""
    positions: list[PositionInfo]
    """The dial."""
    licence: str
    """Licence of weights and pictures."""


class ServerInfo(BaseModel):
    """What serves: the facts without which a time measured over HTTP means little."""

    commit: str
    """The code, as git names it; "unknown" outside a checkout."""
    device: str
    """The GPU, or the processor and how many threads are used."""
    versions: dict[str, str]
    """Versions of Python, stepdial, and the libraries that change numbers."""


class ModelList(BaseModel):
    """The families that are served."""

    data: list[ModelInfo]
    server: ServerInfo


class Status(BaseModel):
    """How the server is."""

    status: Literal["alive", "ready"]


class FieldProblem(BaseModel):
    """What is wrong with one field."""

    pointer: str
    """JSON pointer into the request body."""
    detail: str


class Problem(BaseModel):
    """An error, as RFC 9457 has it (application/problem+json)."""

    type: str
    """Names the kind of problem; the same kind always has the same type."""
    title: str
    status: int
    detail: str
    errors: list[FieldProblem] | None = None
    """Which fields of the body are to blame."""
    available_steps: list[int] | None = None
    """The dial positions that are served, if the one asked for is not."""
    min_feasible_ms: int | None = None
    """The smallest deadline_ms that could be promised now, if the one asked for cannot."""
    deadline_met: bool | None = None
    """False if the deadline passed while the images were waited for."""
