"""How requests to draw end, counted."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fastapi.exceptions import RequestValidationError

from server import metrics
from server.errors import TABLE, Answer, answer_for


@dataclass(slots=True)
class Count:
    """One request to draw, as the metrics see it."""

    model: str
    """Name of the family, or "none" while it is not known."""
    steps: str
    """Dial position, or "none" while it is not known."""


def outcome_of(error: Exception) -> str:
    """Return what the metrics call the end of a request that fails so; a refusal is counted here, by its reason."""
    answer = answer_for(error)
    if answer.outcome == "rejected":
        metrics.REJECTED.labels(_reason(answer)).inc()
    return answer.outcome


@contextmanager
def counted(model: str = "none", steps: str = "none") -> Iterator[Count]:
    """Count one request to draw by how the block ends: ok, cancelled, or as the error is answered."""
    count, outcome = Count(model, steps), "ok"
    try:
        yield count
    except (asyncio.CancelledError, GeneratorExit):
        outcome = "cancelled"
        raise
    except RequestValidationError:
        outcome = ""  # counted where it is answered: most such requests never come here
        raise
    except Exception as error:
        outcome = outcome_of(error)
        raise
    finally:
        if outcome:
            metrics.REQUESTS.labels(count.model, count.steps, outcome).inc()


def _reason(answer: Answer) -> str:
    return answer.type.replace("-", "_")


for _answer in TABLE.values():
    if _answer.outcome == "rejected":
        metrics.REJECTED.labels(_reason(_answer))  # from 0 on, as metrics.py says
