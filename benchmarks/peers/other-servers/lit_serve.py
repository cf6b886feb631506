"""The family behind LitServe: requests in batches. Arguments: folder of the family, port, number of workers.

Workers share the cores: one has all threads of PyTorch, two have half of them each.
"""

import os
import sys
from pathlib import Path
from typing import Any

import litserve as ls
import numpy as np
import torch
from pydantic import BaseModel

from benchmarks.peers.painter import BATCH_SECONDS, MAX_BATCH, Painter, answer


class Wish(BaseModel):
    """What is to be drawn."""

    prompt: str
    steps: int
    seed: int | None = None


class Drawing(ls.LitAPI):
    """Draws batches; the worker encodes them one image after another, as the framework has it."""

    def __init__(self, folder: Path, workers: int):
        """Take wishes for the family in this folder."""
        super().__init__(api_path="/generate", max_batch_size=MAX_BATCH // workers, batch_timeout=BATCH_SECONDS)
        self._folder, self._workers = folder, workers

    def setup(self, device: str) -> None:
        """Load and warm the networks, in the worker."""
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // self._workers))
        self._painter = Painter(self._folder)
        self._painter.warm()

    def decode_request(self, request: Wish) -> dict[str, Any]:
        """Return the wish."""
        return request.model_dump()

    def batch(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the wishes as they are: they are no tensors to be stacked."""
        return inputs

    def predict(self, x: list[dict[str, Any]]) -> list[tuple[np.ndarray, int]]:
        """Draw a batch."""
        return [(pixels, wish["steps"]) for pixels, wish in zip(self._painter.paint(x), x, strict=True)]

    def unbatch(self, output: list[tuple[np.ndarray, int]]) -> list[tuple[np.ndarray, int]]:
        """Return the images as they are."""
        return output

    def encode_response(self, output: tuple[np.ndarray, int]) -> dict[str, Any]:
        """Return one image's answer."""
        return answer(*output)


if __name__ == "__main__":
    workers = int(sys.argv[3])
    drawing = Drawing(Path(sys.argv[1]), workers)
    server = ls.LitServer(drawing, accelerator="cpu", workers_per_device=workers, fast_queue=True)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="warning")
