"""OpenAI's images API in front of the same dial, so that their clients work unmodified."""

import time
from collections.abc import Callable
from contextlib import aclosing
from datetime import datetime
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from diffusion.family import Family
from server.account import ACCOUNT_HEADERS, account_headers, account_of
from server.contract import EVENTS, described
from server.dial import Wish
from server.errors import logged_problem
from server.events import Events, event, event_stream
from server.failures import FieldRefused
from server.gate import charged
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
from server.roster import Roster, Served
from server.schemas import GenerateRequest, Timings
from server.stream import encoded
from server.studio import Picture, Preview, Studio

OWN = (ImagesRequest.model_fields.keys() & GenerateRequest.model_fields.keys()) - {"stream"}
"""Fields that mean here what they mean in POST /generate."""


def openai_routes(roster: Roster, studio: Studio) -> APIRouter:
    """The routes under /v1."""
    router = APIRouter(prefix="/v1", tags=["openai"])

    @router.post(
        "/images/generations",
        response_model=ImagesResponse,
        responses={
            200: {
                "content": EVENTS,
                "headers": described(ACCOUNT_HEADERS),
            },
            **errors(400, 401, 403, 404, 408, 413, 415, 429, 500, 503, 504),
        },
        summary="Draw images, as OpenAI's clients ask for them",
    )
    async def generations(body: ImagesRequest, request: Request, response: Response) -> Any:
        """Draw images of one wish. `stream: true` answers with OpenAI's server-sent events."""
        if body.stream:
            events = _events(request, body, roster, studio)
            return await event_stream(request, events, failed=_error_event(request))
        with counted() as count:
            served = roster.find(body.model)
            own = translated(body, served.family)
            count.model, count.steps = served.family.name, served.dial.label(own)
            wish = _turn(served, own, body)
            async with charged(request, wish):
                pictures, timings = await while_connected(request, studio.make(wish, own.output_format))
        account = account_of(wish, pictures, timings)
        response.headers.update(account_headers(account, pictures))
        return ImagesResponse(
            **account.model_dump(),
            **_facts(account.steps_used, own, _size(served.family)),
            created=int(time.time()),
            data=[OpenAIImage(b64_json=encoded(picture.data), seed=picture.seed) for picture in pictures],
            usage=usage(wish, pictures),
        )

    @router.get("/models", summary="The families, in OpenAI's list", responses=errors(401, 403))
    async def models() -> OpenAIModels:
        return OpenAIModels(data=[_model(served.family) for served in roster.ready])

    @router.get("/models/{name}", summary="One family, in OpenAI's words", responses=errors(401, 403, 404))
    async def model(name: str) -> OpenAIModel:
        return _model(roster.find(name).family)

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
    if meant is None and family.frontier:  # of a family that nobody measured nothing can be chosen
        own.setdefault("steps", "auto")
    if meant and own.setdefault("steps", meant) != meant:
        raise FieldRefused("quality", f"quality {body.quality} is {meant} steps, steps says {body.steps}; give one")
    try:
        return GenerateRequest(**own)
    except ValidationError as error:
        found = [item | {"loc": ("body", *item["loc"])} for item in error.errors()]
        raise RequestValidationError(found) from None


def _turn(served: Served, own: GenerateRequest, body: ImagesRequest) -> Wish:
    try:
        return served.turn(own)
    except FieldRefused as error:
        if error.field == "steps" and body.steps is None:
            raise FieldRefused("quality", f"quality {body.quality or 'auto'}: {error}") from None
        if error.field == "label" and body.label is None:
            raise FieldRefused("prompt", str(error)) from None
        raise


async def _events(request: Request, body: ImagesRequest, roster: Roster, studio: Studio) -> Events:
    with counted() as count:
        served = roster.find(body.model)
        own = translated(body, served.family)
        count.model, count.steps = served.family.name, served.dial.label(own)
        wish = _turn(served, own, body)
        shown, sent = partial_hops(len(wish.samples[0].plan.hops), body.partial_images or 0), 0
        size, created = _size(served.family), int(time.time())
        facts = _facts(wish.steps, own, size)
        parts = studio.show(wish, own.output_format, shown=shown.__contains__)
        async with charged(request, wish), aclosing(parts):
            async for part in parts:
                if isinstance(part, Preview):
                    partial = PartialImage(
                        **facts, b64_json=encoded(part.data), created_at=created, partial_image_index=sent
                    )
                    sent += 1
                    yield event(partial.type, partial.model_dump_json())
                else:
                    done = _completed(wish, own, *part, size=size, created=created)
                    yield event(done.type, done.model_dump_json())


def _completed(
    wish: Wish, own: GenerateRequest, pictures: list[Picture], timings: Timings, *, size: str, created: int
) -> CompletedImage:
    account = account_of(wish, pictures, timings)
    return CompletedImage(
        **account.model_dump(),
        **_facts(account.steps_used, own, size),
        b64_json=encoded(pictures[0].data),
        seed=pictures[0].seed,
        created_at=created,
        usage=usage(wish, pictures),
    )


def partial_hops(hops: int, wanted: int) -> set[int]:
    """Return after which of an image's hops to show it: as many as wanted where there are, evenly spaced, never the last."""
    shown = min(wanted, hops - 1)
    return {round(hops * number / (shown + 1)) for number in range(1, shown + 1)}


def _error_event(request: Request) -> Callable[[Exception], bytes]:
    return lambda error: event("error", error_answer(logged_problem(request, error)).model_dump_json(ensure_ascii=True))


def _facts(used: int, own: GenerateRequest, size: str) -> dict[str, Any]:
    words = {steps: word for word, steps in QUALITY_STEPS.items()}
    return {"output_format": own.output_format, "quality": words.get(used, "auto"), "size": size}


def usage(wish: Wish, pictures: list[Picture]) -> Usage:
    """Return what the images took; those that ended sooner than their plan, what they took until then."""
    plans = (picture.plan or sample.plan for picture, sample in zip(pictures, wish.samples, strict=True))
    evaluations = sum(plan.steps for plan in plans)
    details = TokenDetails(image_tokens=evaluations)
    return Usage(output_tokens=evaluations, output_tokens_details=details, total_tokens=evaluations)


def _size(family: Family) -> str:
    return f"{family.manifest.resolution}x{family.manifest.resolution}"


def _model(family: Family) -> OpenAIModel:
    finished = max(datetime.fromisoformat(member.training.finished_at) for member in family.manifest.members)
    return OpenAIModel(id=family.name, created=int(finished.timestamp()))
