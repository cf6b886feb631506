"""Between OpenAI's words and ours: their request as ours, our facts as theirs."""

from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from diffusion.family import Family
from server.dial import Wish
from server.failures import FieldRefused
from server.openai_schemas import QUALITY_STEPS, ImagesRequest, TokenDetails, Usage
from server.roster import Served
from server.schemas import GenerateRequest
from server.studio import Picture

OWN = (ImagesRequest.model_fields.keys() & GenerateRequest.model_fields.keys()) - {"stream"}
"""Fields that mean here what they mean in POST /generate."""


def translated(body: ImagesRequest, family: Family) -> GenerateRequest:
    """Return the same wish in our own words.

    Raises FieldRefused for what this server or this family does not do, RequestValidationError for a wrong value.
    """
    size = size_of(family)
    if body.size not in (None, "auto", size):
        raise FieldRefused("size", f"size {body.size} is not drawn; this model draws {size}, or say auto")
    if body.stream and body.n not in (None, 1):
        raise FieldRefused("n", f"a stream shows one image, n is {body.n}; leave out stream to get several")
    if body.partial_images and not body.stream:
        raise FieldRefused(
            "partial_images", f"partial_images is {body.partial_images}; they are sent in a stream, say stream: true"
        )
    own = body.model_dump(include=OWN, exclude_none=True)
    if not own.get("prompt"):  # their client cannot leave it out
        own.pop("prompt", None)
    if family.manifest.conditioning.kind == "label" and "label" not in own and "prompt" in own:
        own["label"] = own.pop("prompt")
    meant = QUALITY_STEPS.get(body.quality or "auto")
    if meant is None and family.frontier:  # of a family that nobody measured nothing can be chosen
        own.setdefault("steps", "auto")
    if meant and own.setdefault("steps", meant) != meant:
        raise FieldRefused("quality", f"quality {body.quality} is {meant} steps, steps says {body.steps}; give one")
    try:
        return GenerateRequest(**own)
    except ValidationError as error:
        found = [item | {"loc": ("body", *item["loc"])} for item in error.errors()]
        raise RequestValidationError(found) from None


def turn(served: Served, own: GenerateRequest, body: ImagesRequest) -> Wish:
    """Return what Served.turn returns of a translated request, blaming the fields that the client gave. Raises what it raises."""
    try:
        return served.turn(own)
    except FieldRefused as error:
        if error.field == "steps" and body.steps is None:
            raise FieldRefused("quality", f"quality {body.quality or 'auto'}: {error}") from None
        if error.field == "label" and body.label is None:
            raise FieldRefused("prompt", str(error)) from None
        raise


def facts(used: int, own: GenerateRequest, size: str) -> dict[str, Any]:
    """Return what every answer of the facade says about its images."""
    words = {steps: word for word, steps in QUALITY_STEPS.items()}
    return {"output_format": own.output_format, "quality": words.get(used, "auto"), "size": size}


def usage(wish: Wish, pictures: list[Picture]) -> Usage:
    """Return what the images took; those that ended sooner than their plan, what they took until then."""
    plans = (picture.plan or sample.plan for picture, sample in zip(pictures, wish.samples, strict=True))
    evaluations = sum(plan.steps for plan in plans)
    details = TokenDetails(image_tokens=evaluations)
    return Usage(output_tokens=evaluations, output_tokens_details=details, total_tokens=evaluations)


def size_of(family: Family) -> str:
    """Return the one size that a family draws, in OpenAI's words."""
    return f"{family.manifest.resolution}x{family.manifest.resolution}"
