"""OpenAI's images API: what travels. Their fields as they name them, ours beside them."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr

from server.images import Format
from server.schemas import MAX_SEED, Account, Steps

QUALITY_STEPS = {"low": 1, "medium": 2, "high": 4, "xhigh": 8, "max": 16}
"""What OpenAI's word for quality means on the dial."""
Quality = Literal["low", "medium", "high", "xhigh", "max", "auto"]


class ImagesRequest(BaseModel):
    """OpenAI's request for images, with the dial's own fields beside theirs (their client sends those by extra_body)."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        json_schema_extra={"examples": [{"prompt": "a red star on mint", "quality": "high", "seed": 7}]},
    )

    prompt: Annotated[StrictStr | None, Field(max_length=1000)] = None
    """What to draw; where the model takes labels, the label, and where it takes no wishes, nothing."""
    model: Annotated[StrictStr | None, Field(max_length=200)] = None
    """Family to draw with; GET /v1/models lists them. Default: the first."""
    n: Annotated[int, Field(strict=True, ge=1)] | None = None
    """Number of images, 1 by default; a stream has one."""
    size: Annotated[StrictStr | None, Field(max_length=20)] = None
    """"auto" or the one size that the model draws, such as "32x32"."""
    quality: Quality | None = None
    """low, medium, high, xhigh, max: 1, 2, 4, 8, 16 steps; auto (the default): steps "auto", the server's choice, or
    the model's default position where it was not measured."""
    response_format: Literal["b64_json"] | None = None
    """Images come as b64_json; they are not stored, so there are no URLs."""
    output_format: Format | None = None
    """File format of the images, png by default."""
    stream: StrictBool | None = None
    """Answer with server-sent events: image_generation.partial_image, then image_generation.completed."""
    partial_images: Annotated[int, Field(strict=True, ge=0, le=3)] | None = None
    """Previews in a stream at most; fewer where an image takes fewer hops. Default 0."""
    background: Literal["auto", "opaque"] | None = None
    """Images are opaque."""
    moderation: Literal["auto", "low"] | None = None
    """Ignored: a model draws what its words say, and knows no others."""
    output_compression: Annotated[int, Field(strict=True, ge=0, le=100)] | None = None
    """Ignored: PNG and WebP are lossless, JPEG is of quality 95."""
    user: Annotated[StrictStr | None, Field(max_length=1000)] = None
    """Ignored."""

    steps: Steps | Literal["auto"] | None = None
    """Ours: dial position, instead of quality."""
    seed: Annotated[int | None, Field(strict=True, ge=0, le=MAX_SEED)] = None
    """Ours: equal seeds give equal images. Default: drawn, and returned beside the image."""
    guidance: float | None = None
    """Ours: weight of classifier-free guidance, where `guidance` of /generate may be named."""
    deadline_ms: float | None = None
    """Ours: as in POST /generate."""
    determinism: Literal["exact", "fast"] | None = None
    """Ours: as in POST /generate."""
    min_steps: Steps | None = None
    """Ours: as in POST /generate."""
    max_steps: Steps | None = None
    """Ours: as in POST /generate."""
    plan: Literal["dedicated", "searched", "auto"] | None = None
    """Ours: as in POST /generate."""
    allow_degrade: StrictBool | None = None
    """Ours: as in POST /generate."""
    label: StrictInt | Annotated[StrictStr, Field(max_length=200)] | None = None
    """Ours: class to draw, instead of the prompt."""


class OpenAIImage(BaseModel):
    """One image of an answer."""

    b64_json: str
    """The image file, base64."""
    seed: int
    """Ours: the seed that it was drawn with."""


class TokenDetails(BaseModel):
    """Where tokens went; nothing here is counted in text."""

    image_tokens: int
    text_tokens: int = 0


class Usage(BaseModel):
    """What the answer cost, in the only unit there is: a token is one network evaluation."""

    input_tokens: int = 0
    input_tokens_details: TokenDetails = TokenDetails(image_tokens=0)
    output_tokens: int
    output_tokens_details: TokenDetails
    total_tokens: int


class Answer(BaseModel):
    """What every answer of the facade says about its images."""

    background: Literal["opaque"] = "opaque"
    output_format: Format
    quality: Quality
    """The word for the steps that were used; auto where there is none."""
    size: str


class ImagesResponse(Account, Answer):
    """OpenAI's answer, with ours of what was drawn of what was asked for."""

    created: int
    """Seconds since 1970, UTC."""
    data: list[OpenAIImage]
    usage: Usage


class PartialImage(Answer):
    """A preview in a stream."""

    type: Literal["image_generation.partial_image"] = "image_generation.partial_image"
    b64_json: str
    created_at: int
    partial_image_index: int


class CompletedImage(Account, Answer):
    """The image at the end of a stream, with ours of what was drawn of what was asked for."""

    type: Literal["image_generation.completed"] = "image_generation.completed"
    b64_json: str
    created_at: int
    usage: Usage
    seed: int
    """Ours: the seed that it was drawn with."""


class OpenAIModel(BaseModel):
    """A family, in OpenAI's list."""

    id: str
    object: Literal["model"] = "model"
    created: int
    """When its last member was trained, in seconds since 1970, UTC."""
    owned_by: str = "stepdial"


class OpenAIModels(BaseModel):
    """OpenAI's list of models."""

    object: Literal["list"] = "list"
    data: list[OpenAIModel]


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    """invalid_request_error, authentication_error, permission_error, rate_limit_error or server_error."""
    param: str | None
    """The field to blame."""
    code: str
    """The kind of problem, as in our own problem types."""


class ErrorAnswer(BaseModel):
    """OpenAI's error object."""

    error: ErrorDetail
