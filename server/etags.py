"""Entity tags: a client that has an image already need not have it drawn again (RFC 9110, 8.8 and 13)."""

import re

from fastapi import Request, Response

from diffusion.family import Family
from server.content import content_key
from server.dial import Wish
from server.images import Format
from server.schemas import GenerateRequest


def entity_tag(family: Family, body: GenerateRequest, wish: Wish, raw: Format | None) -> str | None:
    """Return the tag of the answer, or None where an equal request need not give an equal answer.

    Where the server chooses the steps, it has done so before: the tag is that of the plan which would be drawn now. A
    sample that may end by an alternative has none. Raw bytes have a strong tag. JSON has a weak one: its images are the
    same bytes every time, its times and what it says of the crowd are not.
    """
    if body.seed is None or body.determinism != "exact" or any(sample.alternatives for sample in wish.samples):
        return None
    key = content_key(family, wish.samples, raw or body.output_format)
    return f'"{key}"' if raw else f'W/"{key}-json"'


def unchanged(request: Request, tag: str | None) -> Response | None:
    """Return the 304 answer if the client names this tag as one it has."""
    known = re.findall(r'"[^"]*"', ",".join(request.headers.getlist("if-none-match")))
    if tag is None or tag.removeprefix("W/") not in known:
        return None
    return Response(status_code=304, headers=tag_headers(tag))


def tag_headers(tag: str | None) -> dict[str, str]:
    """Return the headers that an answer with this tag carries."""
    return {"ETag": tag, "Vary": "Accept"} if tag else {"Vary": "Accept"}
