"""OpenAI's images API in front of the same dial, so that their clients work unmodified."""

import time
from collections.abc import Callable
from contextlib import aclosing
from datetime import datetime
from typing import Any

from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from diffusion.family import Family
from server.dial import Dial, Wish
from server.errors import problem_of
from server.events import Events, event, event_stream
from server.failures import FieldRefused, ModelUnknown, StepsNotServed
from server.openai_errors import error_answer, errors
from server.openai_schemas import (
    QUALITY_STEPS,
    CompletedImage,
    ImagesRequest,
    ImagesResponse,
    OpenAIImage,
    OpenAIModel,
    OpenAIModels,
    PartialImage,
    TokenDetails,
    Usage,
)
from server.outcomes import counted
from server.patience import while_connected
from server.schemas import GenerateRequest
from server.stream import encoded
from server.studio import Preview, Studio

OWN = {"model", "prompt", "n", "output_format", "steps", "seed", "label", "guidance", "deadline_ms", "determinism"}
"""Fields that mean here what they mean in POST /generate."""


def openai_routes(dial: Dial, studio: Studio, family: Family) -> APIRouter:
    """The routes under /v1."""
    router = APIRouter(prefix="/v1", tags=["openai"])

    @router.post(
        "/images/generations",
        response_model=ImagesResponse,
        responses={
            200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}},
            **errors(400, 404, 413, 415, 500, 503, 504),
        },
        summary="Draw images, as OpenAI's clients ask for them",
    )
    async def generations(body: ImagesRequest, request: Request) -> Any:
        """Draw images of one wish. `stream: true` answers with OpenAI's server-sent events."""
        if body.stream:
            events = _events(body, dial, studio, family)
            return await event_stream(request, events, failed=_error_event(request))
        with counted() as count:
            own = translated(body, family)
            count.steps = dial.label(own)
            wish = _turn(dial, own, body)
            pictures, _ = await while_connected(request, studio.make(wish, own.output_format))
        return ImagesResponse(
            **_facts(wish, own, _size(family)),
            created=int(time.time()),
            data=[OpenAIImage(b64_json=encoded(picture.data), seed=picture.seed) for picture in pictures],
            usage=_usage(wish),
            steps_used=wish.steps,
        )

    @router.get("/models", summary="The families, in OpenAI's list")
    async def models() -> OpenAIModels:
        return OpenAIModels(data=[_model(family)])

    @router.get("/models/{name}", summary="One family, in OpenAI's words", responses=errors(404))
    async def model(name: str) -> OpenAIModel:
        if name != family.name:
            raise ModelUnknown(f"no model of that name is served; served is {family.name!r}")
        return _model(family)

    return router


def translated(body: ImagesRequest, family: Family) -> GenerateRequest:
    """Return the same wish in our own words.

    Raises FieldRefused for what this server or this family does not do, RequestValidationError for a wrong value.
    """
    size = _size(family)
    if body.size not in (None, "auto", size):
        raise FieldRefused("size", f"size {body.size} is not drawn; this model draws {size}, or say auto")
    if body.stream and body.n not in (None, 1):
        raise FieldRefused("n", f"a stream shows one image, n is {body.n}; leave out stream to get several")
    if body.partial_images and not body.stream:
        raise FieldRefused("partial_images", "partial images are sent in a stream; say stream: true")
    own = body.model_dump(include=OWN, exclude_none=True)
    if not own.get("prompt"):  # their client cannot leave it out
        own.pop("prompt", None)
    if family.manifest.conditioning.kind == "label" and "label" not in own and "prompt" in own:
        own["label"] = own.pop("prompt")
    meant = QUALITY_STEPS.get(body.quality or "auto")
    if meant and own.setdefault("steps", meant) != meant:
        raise FieldRefused("quality", f"quality {body.quality} is {meant} steps, steps says {body.steps}; give one")
    try:
        return GenerateRequest(**own)
    except ValidationError as error:
        found = [item | {"loc": ("body", *item["loc"])} for item in error.errors()]
        raise RequestValidationError(found) from None


def _turn(dial: Dial, own: GenerateRequest, body: ImagesRequest) -> Wish:
    try:
        return dial.turn(own)
    except StepsNotServed as error:
        if body.steps is not None:
            raise
        raise FieldRefused("quality", f"quality {body.quality} is {own.steps} steps: {error}") from None
    except FieldRefused as error:
        if error.field == "label" and body.label is None:
            raise FieldRefused("prompt", str(error)) from None
        raise


async def _events(body: ImagesRequest, dial: Dial, studio: Studio, family: Family) -> Events:
    with counted() as count:
        own = translated(body, family)
        count.steps = dial.label(own)
        wish = _turn(dial, own, body)
        shown, sent = partial_hops(wish.samples[0].evaluations, body.partial_images or 0), 0
        facts: dict[str, Any] = _facts(wish, own, _size(family)) | {"created_at": int(time.time())}
        async with aclosing(studio.show(wish, own.output_format, shown=shown.__contains__)) as parts:
            async for part in parts:
                if isinstance(part, Preview):
                    partial = PartialImage(**facts, b64_json=encoded(part.data), partial_image_index=sent)
                    sent += 1
                    yield event(partial.type, partial.model_dump_json())
                else:
                    (picture,), _ = part
                    facts |= {"b64_json": encoded(picture.data), "seed": picture.seed}
                    done = CompletedImage(**facts, usage=_usage(wish), steps_used=wish.steps)
                    yield event(done.type, done.model_dump_json())


def partial_hops(hops: int, wanted: int) -> set[int]:
    """Return after which of an image's hops to show it: as many as wanted where there are, evenly spaced, never the last."""
    shown = min(wanted, hops - 1)
    return {round(hops * number / (shown + 1)) for number in range(1, shown + 1)}


def _error_event(request: Request) -> Callable[[Exception], bytes]:
    return lambda error: event("error", error_answer(problem_of(request, error)).model_dump_json(ensure_ascii=True))


def _facts(wish: Wish, own: GenerateRequest, size: str) -> dict[str, Any]:
    words = {steps: word for word, steps in QUALITY_STEPS.items()}
    return {"output_format": own.output_format, "quality": words.get(wish.steps, "auto"), "size": size}


def _usage(wish: Wish) -> Usage:
    evaluations = sum(sample.evaluations for sample in wish.samples)
    details = TokenDetails(image_tokens=evaluations)
    return Usage(output_tokens=evaluations, output_tokens_details=details, total_tokens=evaluations)


def _size(family: Family) -> str:
    return f"{family.manifest.resolution}x{family.manifest.resolution}"


def _model(family: Family) -> OpenAIModel:
    finished = max(datetime.fromisoformat(member.training.finished_at) for member in family.manifest.members)
    return OpenAIModel(id=family.name, created=int(finished.timestamp()))
