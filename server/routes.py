"""The endpoints. Each is a few lines: the rooms behind them do the work."""

import base64
import time
import uuid
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from diffusion.family import Family
from diffusion.frontier import Frontier
from server import metrics
from server.accept import RAW_TYPES, wanted_format
from server.account import ACCOUNT_HEADERS, account_headers, account_of
from server.contract import problems
from server.dial import Dial
from server.errors import answer_for
from server.failures import DeviceLost, FieldRefused, NotMeasured, NotReady
from server.images import Format
from server.patience import while_connected
from server.scheduler import Scheduler
from server.schemas import Account, GenerateRequest, GenerateResponse, ImageData, ModelList, Status, Timings
from server.studio import Picture, Studio

PAGE = Path(__file__).parent / "page"


def drawing_routes(dial: Dial, studio: Studio) -> APIRouter:
    """The routes that draw."""
    router = APIRouter(tags=["drawing"])

    @router.post("/generate", response_model=GenerateResponse, responses=GENERATE_RESPONSES, summary="Draw images")
    async def generate(body: GenerateRequest, request: Request, response: Response) -> Any:
        """Draw one image or several of one wish. `Accept: image/png` (webp, jpeg) answers with one image's bytes."""
        steps, outcome = dial.label(body), "failed"
        try:
            raw = _raw_format(body, request.headers.get("accept", ""))
            wish = dial.turn(body)
            pictures, timings = await while_connected(request, studio.make(wish, raw or body.output_format))
            outcome = "ok"
        except Exception as error:
            outcome = answer_for(error).outcome
            if outcome == "rejected":
                metrics.REJECTED.labels(answer_for(error).type.replace("-", "_")).inc()
            raise
        finally:
            metrics.REQUESTS.labels(steps, outcome).inc()
        account = account_of(wish, pictures, timings)
        if raw:
            return _raw_response(account, pictures[0], raw, timings)
        response.headers.update(account_headers(account))
        return _json_response(wish.model, account, pictures, timings)

    return router


def reading_routes(dial: Dial, family: Family, scheduler: Scheduler) -> APIRouter:
    """The routes that tell: what is served, how good it is, how the server is."""
    router = APIRouter(tags=["reading"])

    @router.get("/models", summary="What is served: families and their dials")
    async def models() -> ModelList:
        return ModelList(data=[dial.describe()])

    @router.get("/frontier", summary="What each dial position gives and costs, as measured", responses=problems(404))
    async def frontier() -> Frontier:
        if family.frontier is None:
            raise NotMeasured(f"family {family.name!r} was not measured yet; `stepdial evaluate` does it")
        return family.frontier

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
        if scheduler.state == "draining":
            raise NotReady("the server is about to end and takes no new work")
        return Status(status="ready")

    @router.get("/metrics", summary="Metrics for Prometheus", response_class=Response)
    async def prometheus() -> Response:
        scheduler.publish()
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    @router.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html")

    return router


def _raw_format(body: GenerateRequest, accept: str) -> Format | None:
    """The format of a raw answer, None for JSON. Raises FieldRefused where header and body contradict each other."""
    accepted = wanted_format(accept)
    if accepted and "output_format" in body.model_fields_set and body.output_format != accepted:
        raise FieldRefused(
            "output_format", f"output_format is {body.output_format}, the Accept header wants {accepted}"
        )
    raw = accepted or (body.output_format if body.response_format == "file" else None)
    if raw and body.n > 1:
        raise FieldRefused("n", "a raw image answer holds one image; ask for JSON (b64_json) to get several")
    return raw


def _raw_response(account: Account, picture: Picture, output_format: Format, timings: Timings) -> Response:
    stages = (
        f"{stage};dur={getattr(timings, f'{stage}_seconds') * 1000:.3f}"
        for stage in ("queue", "device", "encode", "total")
    )
    headers = {
        **account_headers(account),
        "X-Seed": str(picture.seed),
        "Server-Timing": ", ".join(stages),
    }
    return Response(picture.data, headers=headers, media_type=f"image/{output_format}")


def _json_response(model: str, account: Account, pictures: list[Picture], timings: Timings) -> GenerateResponse:
    data = [ImageData(b64_json=base64.b64encode(p.data).decode(), seed=p.seed, index=p.index) for p in pictures]
    return GenerateResponse(
        id=f"img_{uuid.uuid4().hex}",
        created=int(time.time()),
        model=model,
        **account.model_dump(),
        data=data,
        timings=timings,
    )


RAW_HEADERS = {
    **ACCOUNT_HEADERS,
    "X-Seed": "The seed, with raw bytes",
    "Server-Timing": "queue, device, encode and total, in milliseconds, with raw bytes",
}
GENERATE_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The images; raw bytes of one where the Accept header or response_format asks for them",
        "content": {media_type: {"schema": {"type": "string", "format": "binary"}} for media_type in RAW_TYPES},
        "headers": {name: {"description": text, "schema": {"type": "string"}} for name, text in RAW_HEADERS.items()},
    },
    **problems(400, 404, 413, 415, 422, 429, 500, 503, 504),
}
