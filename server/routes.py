"""The endpoints. Each is a few lines: the rooms behind them do the work."""

from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from diffusion.frontier import Frontier
from server.accept import RAW_TYPES, wanted_answer
from server.account import ACCOUNT_HEADERS, account_headers, account_of
from server.contract import EVENTS, described, problems
from server.etags import entity_tag, tag_headers, unchanged
from server.events import event_stream
from server.failures import DeviceLost, FieldRefused, NotMeasured, NotReady
from server.gate import charged
from server.images import Format
from server.outcomes import counted
from server.patience import while_connected
from server.roster import Roster
from server.scheduler import Scheduler
from server.schemas import GenerateRequest, GenerateResponse, ModelList, ServerInfo, Status, Timings
from server.stream import error_event, generate_events, json_answer
from server.studio import Picture, Studio

PAGE = Path(__file__).parent / "page"
METRICS_LINK = ' <a href="/metrics">metrics</a>'
"""Of the page; it is not shown where the metrics are on another port."""


def drawing_routes(roster: Roster, studio: Studio) -> APIRouter:
    """The routes that draw."""
    router = APIRouter(tags=["drawing"])

    @router.post("/generate", response_model=GenerateResponse, responses=GENERATE_RESPONSES, summary="Draw images")
    async def generate(body: GenerateRequest, request: Request, response: Response) -> Any:
        """Draw one image or several of one wish.

        `Accept: image/png` (webp, jpeg) answers with one image's bytes. `stream: true` or `Accept: text/event-stream`
        answers with server-sent events: `preview` after each hop of an image but its last, an `image` for each, then
        `done`; or `error`, a problem. Where the seed is given, the answer has an ETag, and If-None-Match spares drawing.
        """
        accepted = wanted_answer(request.headers.get("accept", ""))
        if body.stream or accepted == "events":
            events = generate_events(request, body, roster, studio)
            return await event_stream(request, events, failed=error_event(request))
        with counted(*roster.labels(body)):
            raw = _raw_format(body, accepted)
            served = roster.find(body.model)
            wish = served.turn(body)
            tag = entity_tag(served.family, body, wish, raw)
            if same := unchanged(request, tag):
                return same
            async with charged(request, wish):
                pictures, timings = await while_connected(request, studio.make(wish, raw or body.output_format))
        account = account_of(wish, pictures, timings)
        headers = account_headers(account, pictures) | tag_headers(tag)
        if raw:
            return _raw_response(pictures[0], raw, timings, headers)
        response.headers.update(headers)
        return json_answer(wish.model, account, pictures, timings)

    return router


def reading_routes(roster: Roster, server: ServerInfo) -> APIRouter:
    """The routes that tell what is served and how good it is."""
    router = APIRouter(tags=["reading"])

    @router.get("/models", summary="What is served: families and their dials")
    async def models() -> ModelList:
        return ModelList(data=[served.dial.describe() for served in roster.ready], server=server)

    @router.get(
        "/frontier", summary="What each dial position gives and costs, as measured", responses=problems(404, 422)
    )
    async def frontier(model: str | None = None) -> Frontier:
        family = roster.find(model).family
        if family.frontier is None:
            raise NotMeasured(f"family {family.name!r} was not measured yet; `stepdial evaluate` does it")
        return family.frontier

    return router


def health_routes(scheduler: Scheduler) -> APIRouter:
    """The routes that tell balancers and orchestrators how the server is."""
    router = APIRouter(tags=["reading"])

    @router.get("/livez", summary="Whether the process is worth keeping", responses=problems(503))
    async def livez() -> Status:
        if scheduler.state == "stopped":
            raise DeviceLost("the device loop has ended")
        return Status(status="alive")

    @router.get("/readyz", summary="Whether requests will be drawn", responses=problems(503))
    async def readyz() -> Status:
        if scheduler.state == "stopped":
            raise DeviceLost("the device loop has ended")
        if scheduler.state == "starting":
            raise NotReady("the networks are being loaded, warmed up and checked")
        if scheduler.leaving:
            raise NotReady("the server is about to end")
        return Status(status="ready")

    return router


def page_routes(*, with_metrics: bool) -> APIRouter:
    """The page; with_metrics says whether /metrics is where the page is."""
    router = APIRouter()
    html = (PAGE / "index.html").read_text()
    html = html if with_metrics else html.replace(METRICS_LINK, "")

    @router.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(html)

    return router


def metrics_routes(scheduler: Scheduler) -> APIRouter:
    """The route that Prometheus reads."""
    router = APIRouter(tags=["reading"])

    @router.get("/metrics", summary="Metrics for Prometheus", response_class=PlainTextResponse)
    async def prometheus() -> Response:
        scheduler.publish()
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    return router


def _raw_format(body: GenerateRequest, accepted: Format | None) -> Format | None:
    """The format of a raw answer, None for JSON. Raises FieldRefused where header and body contradict each other."""
    if accepted and "output_format" in body.model_fields_set and body.output_format != accepted:
        raise FieldRefused(
            "output_format", f"output_format is {body.output_format}, the Accept header wants {accepted}"
        )
    raw = accepted or (body.output_format if body.response_format == "file" else None)
    if raw and body.n > 1:
        raise FieldRefused("n", f"n is {body.n}; a raw image answer holds one image, JSON (b64_json) holds several")
    return raw


def _raw_response(picture: Picture, output_format: Format, timings: Timings, headers: dict[str, str]) -> Response:
    stages = (
        f"{stage};dur={getattr(timings, f'{stage}_seconds') * 1000:.3f}"
        for stage in ("queue", "device", "encode", "total")
    )
    facts = {
        "X-Seed": str(picture.seed),
        "Server-Timing": ", ".join(stages),
    }
    return Response(picture.data, headers=facts | headers, media_type=f"image/{output_format}")


RAW_HEADERS = {
    **ACCOUNT_HEADERS,
    "X-Seed": "The seed, with raw bytes",
    "Server-Timing": "queue, device, encode and total, in milliseconds, with raw bytes",
}
GENERATE_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The images; raw bytes of one, or events, where Accept, response_format or stream ask for them",
        "content": {media_type: {"schema": {"type": "string", "format": "binary"}} for media_type in RAW_TYPES}
        | EVENTS,
        "headers": described(RAW_HEADERS | {"ETag": "Names the answer where the seed was given"}),
    },
    304: {"description": "If-None-Match names the answer; nothing was drawn"},
    **problems(400, 401, 403, 404, 408, 413, 415, 422, 429, 500, 503, 504),
}
