"""Traffic that has something of everything: all positions, jobs, cache hits, refusals, degraded requests, promises."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2

from tests.server.processes import PATIENCE, wait_until

WISH = {"prompt": "a red star on mint"}


class Traffic:
    """Sends requests to a server of the tiny family, or to a balancer before it."""

    def __init__(self, url: str):
        self._client = httpx2.Client(base_url=url, timeout=PATIENCE)
        (family,) = self._client.get("/models").json()["data"]
        self.positions: Sequence[int] = [found["steps"] for found in family["positions"]]

    def round(self) -> None:
        """Send one round, and wait for its end."""
        with ThreadPoolExecutor(8) as pool:
            drawing = [pool.submit(self._draw, steps=steps) for steps in self.positions]
            self._order(4)
            assert self._draw(steps=4, seed=7).status_code == 200
            assert self._draw(steps=4, seed=7).headers["x-cache"] == "hit"
            assert self._draw(steps="auto", deadline_ms=60_000).json()["deadline_met"] is True
            assert self._draw(steps=max(self.positions), deadline_ms=1).status_code == 429
            assert self._draw(steps=3.5).status_code == 422
            wait_until(self._is_lowered)
            assert {answer.result().status_code for answer in drawing} == {200}

    def _draw(self, **wish: Any) -> httpx2.Response:
        return self._client.post("/generate", json=WISH | wish)

    def _is_lowered(self) -> bool:
        """Ask for the most steps by a deadline that only fewer can keep; whoever is late is asked again."""
        wish = {"steps": max(self.positions), "allow_degrade": True}
        least = self._draw(**wish, deadline_ms=1).json()["min_feasible_ms"]
        answer = self._draw(**wish, deadline_ms=4 * least)
        return answer.status_code == 200 and answer.json()["degraded"]

    def _order(self, number: int) -> None:
        jobs = [self._client.post("/jobs", json=WISH | {"steps": 2}) for _ in range(number)]
        places = [job.headers["location"] for job in jobs]
        wait_until(lambda: all(self._client.get(place).json()["state"] == "done" for place in places))
