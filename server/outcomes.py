"""How requests to draw end, counted."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fastapi.exceptions import RequestValidationError

from server import metrics
from server.errors import answer_for


@dataclass(slots=True)
class Count:
    """One request to draw, as the metrics see it."""

    steps: str
    """Dial position, or "none" while it is not known."""


@contextmanager
def counted(steps: str = "none") -> Iterator[Count]:
    """Count one request to draw by how the block ends: ok, cancelled, or as the error is answered."""
    count, outcome = Count(steps), "ok"
    try:
        yield count
    except (asyncio.CancelledError, GeneratorExit):
        outcome = "cancelled"
        raise
    except RequestValidationError:
        outcome = ""  # counted where it is answered: most such requests never come here
        raise
    except Exception as error:
        outcome = answer_for(error).outcome
        if outcome == "rejected":
            metrics.REJECTED.labels(answer_for(error).type.replace("-", "_")).inc()
        raise
    finally:
        if outcome:
            metrics.REQUESTS.labels(count.steps, outcome).inc()
