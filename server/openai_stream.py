"""OpenAI's server-sent events: an image that grows while their client reads."""

import time
from collections.abc import Callable
from contextlib import aclosing

from fastapi import Request

from server.account import account_of
from server.dial import Wish
from server.errors import logged_problem
from server.events import Events, event
from server.gate import charged
from server.openai_errors import error_answer
from server.openai_schemas import CompletedImage, ImagesRequest, PartialImage
from server.openai_words import facts, size_of, translated, turn, usage
from server.outcomes import counted
from server.roster import Roster
from server.schemas import GenerateRequest, Timings
from server.stream import encoded
from server.studio import Picture, Preview, Studio


async def image_events(request: Request, body: ImagesRequest, roster: Roster, studio: Studio) -> Events:
    """Yield OpenAI's events of one image: as many partial images as were asked for, then the completed one."""
    with counted() as count:
        served = roster.find(body.model)
        own = translated(body, served.family)
        count.model, count.steps = served.family.name, served.dial.label(own)
        wish = turn(served, own, body)
        shown, sent = partial_hops(len(wish.samples[0].plan.hops), body.partial_images or 0), 0
        size, created = size_of(served.family), int(time.time())
        said = facts(wish.steps, own, size)
        parts = studio.show(wish, own.output_format, shown=shown.__contains__)
        async with charged(request, wish), aclosing(parts):
            async for part in parts:
                if isinstance(part, Preview):
                    partial = PartialImage(
                        **said, b64_json=encoded(part.data), created_at=created, partial_image_index=sent
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
        **facts(account.steps_used, own, size),
        b64_json=encoded(pictures[0].data),
        seed=pictures[0].seed,
        created_at=created,
        usage=usage(wish, pictures),
    )


def partial_hops(hops: int, wanted: int) -> set[int]:
    """Return after which of an image's hops to show it: as many as wanted where there are, evenly spaced, never the last."""
    shown = min(wanted, hops - 1)
    return {round(hops * number / (shown + 1)) for number in range(1, shown + 1)}


def error_event(request: Request) -> Callable[[Exception], bytes]:
    """Return what makes OpenAI's error event of what goes wrong after the first event."""
    return lambda error: event("error", error_answer(logged_problem(request, error)).model_dump_json(ensure_ascii=True))
