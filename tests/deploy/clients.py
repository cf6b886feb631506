"""Clients that ask without pause, and keep account of what they were answered."""

import threading
from collections import Counter
from collections.abc import Sequence
from typing import Any

import httpx2


class Clients:
    """Threads that draw, watch and order through one address for as long as the block runs.

    One asks for images, one for events, one orders jobs (without keys). Nothing is sent twice by them.
    """

    def __init__(self, url: str, body: dict[str, Any], *, steps: Sequence[int]):
        """body is what all ask for, but for steps, which they take in turn, and seeds, of which there are no two alike."""
        self.outcomes: Counter[str] = Counter()
        self.failures: list[str] = []
        self.orders: list[str] = []
        """Ids of the jobs that were accepted."""
        self._url, self._body, self._steps = url, body, steps
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._seed = 0
        self._threads = [
            threading.Thread(target=self._ask, args=(kind,)) for kind in (self.draw, self.watch, self.order)
        ]

    def __enter__(self) -> "Clients":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    @property
    def asked(self) -> int:
        """Requests that have ended."""
        return self.outcomes.total()

    def _ask(self, kind: Any) -> None:
        with httpx2.Client(base_url=self._url, timeout=150) as client:
            while not self._over.is_set():
                try:
                    failure = kind(client)
                except httpx2.TransportError as error:
                    failure = repr(error)
                with self._lock:
                    self.outcomes[f"{kind.__name__} {'failed' if failure else 'ok'}"] += 1
                    if failure:
                        self.failures.append(f"{kind.__name__}: {failure}")

    def _next_body(self) -> dict[str, Any]:
        with self._lock:
            self._seed += 1
            return self._body | {"seed": self._seed, "steps": self._steps[self._seed % len(self._steps)]}

    def draw(self, client: httpx2.Client) -> str | None:
        """Ask for an image; return what went wrong."""
        answer = client.post("/generate", json=self._next_body())
        return None if answer.status_code == 200 else f"{answer.status_code} {answer.text[:200]}"

    def watch(self, client: httpx2.Client) -> str | None:
        """Ask for an image as it grows; return what went wrong."""
        answer = client.post("/generate", json=self._next_body() | {"stream": True})
        done = answer.status_code == 200 and "event: done" in answer.text
        return None if done else f"{answer.status_code} {answer.text[-200:]}"

    def order(self, client: httpx2.Client) -> str | None:
        """Order a job and wait for its end; return what went wrong."""
        answer = client.post("/jobs", json=self._next_body())
        if answer.status_code not in (200, 202):
            return f"{answer.status_code} {answer.text[:200]}"
        own = answer.json()["links"]["self"]
        self.orders.append(answer.json()["id"])
        while True:
            answer = client.get(own)
            if answer.status_code != 200 or answer.json()["state"] in ("failed", "cancelled"):
                return f"{answer.status_code} {answer.text[:200]}"
            if answer.json()["state"] == "done":
                return None
            self._over.wait(0.2)
