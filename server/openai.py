"""OpenAI's images API in front of the same dial, so that their clients work unmodified."""

import time
from datetime import datetime
from typing import Any

from fastapi import APIRouter, Request, Response

from diffusion.family import Family
from server.account import ACCOUNT_HEADERS, account_headers, account_of
from server.contract import EVENTS, described
from server.events import event_stream
from server.gate import charged
from server.openai_errors import errors
from server.openai_schemas import ImagesRequest, ImagesResponse, OpenAIImage, OpenAIModel, OpenAIModels
from server.openai_stream import error_event, image_events
from server.openai_words import facts, size_of, translated, turn, usage
from server.outcomes import counted
from server.patience import while_connected
from server.roster import Roster
from server.stream import encoded
from server.studio import Studio


def openai_routes(roster: Roster, studio: Studio) -> APIRouter:
    """The routes under /v1."""
    router = APIRouter(prefix="/v1", tags=["openai"])

    @router.post(
        "/images/generations",
        response_model=ImagesResponse,
        responses=IMAGES_RESPONSES,
        summary="Draw images, as OpenAI's clients ask for them",
    )
    async def generations(body: ImagesRequest, request: Request, response: Response) -> Any:
        """Draw images of one wish. `stream: true` answers with OpenAI's server-sent events."""
        if body.stream:
            events = image_events(request, body, roster, studio)
            return await event_stream(request, events, failed=error_event(request))
        return await _drawn(body, request, response, roster, studio)

    @router.get("/models", summary="The families, in OpenAI's list", responses=errors(401, 403))
    async def models() -> OpenAIModels:
        return OpenAIModels(data=[_model(served.family) for served in roster.ready])

    @router.get("/models/{name}", summary="One family, in OpenAI's words", responses=errors(401, 403, 404))
    async def model(name: str) -> OpenAIModel:
        return _model(roster.find(name).family)

    return router


async def _drawn(
    body: ImagesRequest, request: Request, response: Response, roster: Roster, studio: Studio
) -> ImagesResponse:
    with counted() as count:
        served = roster.find(body.model)
        own = translated(body, served.family)
        count.model, count.steps = served.family.name, served.dial.label(own)
        wish = turn(served, own, body)
        async with charged(request, wish):
            pictures, timings = await while_connected(request, studio.make(wish, own.output_format))
    account = account_of(wish, pictures, timings)
    response.headers.update(account_headers(account, pictures))
    return ImagesResponse(
        **account.model_dump(),
        **facts(account.steps_used, own, size_of(served.family)),
        created=int(time.time()),
        data=[OpenAIImage(b64_json=encoded(picture.data), seed=picture.seed) for picture in pictures],
        usage=usage(wish, pictures),
    )


def _model(family: Family) -> OpenAIModel:
    finished = max(datetime.fromisoformat(member.training.finished_at) for member in family.manifest.members)
    return OpenAIModel(id=family.name, created=int(finished.timestamp()))


IMAGES_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"content": EVENTS, "headers": described(ACCOUNT_HEADERS)},
    **errors(400, 401, 403, 404, 408, 413, 415, 429, 500, 503, 504),
}
