"""The Accept header: does the client want JSON, events, or the bytes of one image?"""

from typing import Literal, get_args

from server.images import Format

RAW_TYPES: dict[str, Format] = {f"image/{name}": name for name in get_args(Format)}
"""Media types that stand for the bytes of one image."""
ANSWERS: dict[str, Format | Literal["events"]] = {**RAW_TYPES, "text/event-stream": "events"}
"""Media types of answers that are not JSON."""


def wanted_answer(accept: str) -> Format | Literal["events"] | None:
    """Return the image format that the header prefers, "events" for server-sent events, or None for JSON.

    The best weight wins, on a tie what is named first; `*/*`, `image/*` and anything unknown mean JSON, so that the
    default header of curl changes nothing.
    """
    ranked = sorted(map(_entry, accept.split(",")), key=lambda entry: -entry[1])
    for media_type, weight in ranked:
        if weight > 0 and media_type in ANSWERS:
            return ANSWERS[media_type]
        if weight > 0 and media_type in ("application/json", "application/*", "*/*"):
            return None
    return None


def _entry(text: str) -> tuple[str, float]:
    media_type, *parameters = (part.strip().lower() for part in text.split(";"))
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                return media_type, float(parameter[2:])
            except ValueError:
                return media_type, 0.0
    return media_type, 1.0
