"""How requests to draw end, counted."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from server import metrics
from server.errors import answer_for


@contextmanager
def counted(steps: str) -> Iterator[None]:
    """Count one request to draw at a dial position by how the block ends: ok, cancelled, or as the error is answered."""
    outcome = "ok"
    try:
        yield
    except (asyncio.CancelledError, GeneratorExit):
        outcome = "cancelled"
        raise
    except Exception as error:
        outcome = answer_for(error).outcome
        if outcome == "rejected":
            metrics.REJECTED.labels(answer_for(error).type.replace("-", "_")).inc()
        raise
    finally:
        metrics.REQUESTS.labels(steps, outcome).inc()
