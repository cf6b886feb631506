"""The family behind a plain FastAPI handler: one request draws at a time, the others wait for a lock.

Arguments: folder of the family, port.
"""

import sys
from pathlib import Path
from threading import Lock
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from benchmarks.peers.painter import Painter, answer


class Wish(BaseModel):
    """What is to be drawn."""

    prompt: str
    steps: int
    seed: int | None = None


def main(folder: Path, port: int) -> None:
    """Serve until the process is ended."""
    painter, lock, app = Painter(folder), Lock(), FastAPI()
    painter.warm()

    @app.post("/generate")
    def generate(
        wish: Wish,
    ) -> dict[str, Any]:  # in a thread of the framework's pool, so that the lock blocks nobody else
        with lock:
            (pixels,) = painter.paint([wish.model_dump()])
        return answer(pixels, wish.steps)

    uvicorn.run(app, port=port, log_level="warning")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
