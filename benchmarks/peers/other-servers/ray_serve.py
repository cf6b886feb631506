"""The family behind Ray Serve: one replica that multiplexes the networks and batches requests of one network.

Arguments: folder of the family, port. Which network a request needs is said by its header, serve_multiplexed_model_id.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve.config import HTTPOptions
from starlette.requests import Request

from benchmarks.peers.painter import BATCH_SECONDS, MAX_BATCH, POSITIONS, Painter, answer


@serve.deployment(max_ongoing_requests=2 * MAX_BATCH, ray_actor_options={"num_cpus": 1})
class Drawing:
    """Draws with the network that the request's header names."""

    def __init__(self, folder: Path):
        """Take wishes for the family in this folder."""
        import torch

        torch.set_num_threads(os.cpu_count() or 1)  # Ray sets as many as num_cpus says
        self._folder = folder

    @serve.multiplexed(max_num_models_per_replica=len(POSITIONS))
    async def painter(self, member: str) -> Painter:
        """Load and warm a network when it is first asked for."""
        painter = Painter(self._folder, members=[member])
        painter.warm()
        return painter

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=BATCH_SECONDS)
    async def draw(self, wishes: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Draw a batch whose requests name one network; in a thread, so that requests are taken in meanwhile."""
        painter = await self.painter(serve.get_multiplexed_model_id())
        return await asyncio.to_thread(_draw, painter, wishes)

    async def __call__(self, request: Request) -> dict[str, Any]:
        """Answer a request."""
        return await self.draw(await request.json())


def _draw(painter: Painter, wishes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    images = painter.paint(wishes)
    return [answer(pixels, wish["steps"]) for pixels, wish in zip(images, wishes, strict=True)]


def main(folder: Path, port: int) -> None:
    """Serve until the process is ended."""
    ray.init(include_dashboard=False, configure_logging=False, log_to_driver=False)
    serve.start(http_options=HTTPOptions(host="127.0.0.1", port=port))
    serve.run(Drawing.bind(folder), route_prefix="/generate")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    main(Path(sys.argv[1]), int(sys.argv[2]))
