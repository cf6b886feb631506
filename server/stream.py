"""What POST /generate answers in JSON: all at once, or as events while it is drawn."""

import base64
import time
import uuid
from collections.abc import Callable
from contextlib import aclosing
from typing import get_args

from fastapi import Request

from server.accept import wanted_answer
from server.account import account_of
from server.dial import Wish
from server.errors import logged_problem
from server.events import Events, event
from server.failures import FieldRefused
from server.gate import charged
from server.images import Format
from server.outcomes import counted
from server.roster import Roster
from server.schemas import Account, GenerateRequest, GenerateResponse, ImageData, PreviewData, Timings
from server.studio import Picture, Preview, Studio


async def generate_events(request: Request, body: GenerateRequest, roster: Roster, studio: Studio) -> Events:
    """Yield a `preview` after every hop of an image but its last, an `image` for each, then `done`."""
    with counted(*roster.labels(body)):
        if wanted_answer(request.headers.get("accept", "")) in get_args(Format):
            raise FieldRefused("stream", "stream asks for events, the Accept header for the bytes of one image")
        if body.response_format == "file":
            raise FieldRefused("response_format", "events carry images as b64_json; a file is not streamed")
        wish = roster.find(body.model).turn(body)
        async with charged(request, wish), aclosing(studio.show(wish, body.output_format)) as parts:
            async for part in parts:
                if isinstance(part, Preview):
                    yield event("preview", _preview(wish, part).model_dump_json())
                    continue
                answer = json_answer(wish.model, account_of(wish, *part), *part)
                for image in answer.data:
                    yield event("image", image.model_dump_json())
                yield event("done", answer.model_dump_json(exclude={"data"}))


def error_event(request: Request) -> Callable[[Exception], bytes]:
    """Return what makes the event `error`, a problem, of what goes wrong after the first event."""
    return lambda error: event(
        "error", logged_problem(request, error).model_dump_json(exclude_none=True, ensure_ascii=True)
    )


def json_answer(model: str, account: Account, pictures: list[Picture], timings: Timings) -> GenerateResponse:
    """Return the images and how they were made."""
    data = [ImageData(b64_json=encoded(p.data), seed=p.seed, index=p.index) for p in pictures]
    return GenerateResponse(
        id=f"img_{uuid.uuid4().hex}",
        created=int(time.time()),
        model=model,
        **account.model_dump(),
        data=data,
        timings=timings,
    )


def encoded(data: bytes) -> str:
    """Return bytes in base64."""
    return base64.b64encode(data).decode()


def _preview(wish: Wish, preview: Preview) -> PreviewData:
    hops = len(wish.samples[preview.index].plan.hops)
    return PreviewData(b64_json=encoded(preview.data), index=preview.index, hop=preview.hop, hops=hops)
