"""The family behind BentoML: one worker with adaptive batching. `bentoml serve bento_ml:Drawing`, STEPDIAL_FAMILY the folder.

A batchable API takes lists, so a request is a list of one wish: {"wishes": [{...}]}.
"""

import os
from pathlib import Path
from typing import Any

import bentoml
from pydantic import BaseModel

from benchmarks.peers.painter import MAX_BATCH, Painter, answer


class Wish(BaseModel):
    """What is to be drawn."""

    prompt: str
    steps: int
    seed: int | None = None


@bentoml.service(workers=1, traffic={"timeout": 60})
class Drawing:
    """Draws batches."""

    def __init__(self) -> None:
        """Load and warm the networks."""
        self._painter = Painter(Path(os.environ["STEPDIAL_FAMILY"]))
        self._painter.warm()

    @bentoml.api(route="/generate", batchable=True, max_batch_size=MAX_BATCH, max_latency_ms=60_000)
    def draw(self, wishes: list[Wish]) -> list[dict[str, Any]]:
        """Draw a batch."""
        asked = [wish.model_dump() for wish in wishes]
        images = self._painter.paint(asked)
        return [answer(pixels, wish["steps"]) for pixels, wish in zip(images, asked, strict=True)]
