"""A client at the desk of an app whose device draws names."""

import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from diffusion.family import Family
from server.app import create_app
from server.engine import Engine
from server.settings import Settings
from tests.server.crowd import FakeDevice

WISH = {"prompt": "a red star on mint", "steps": 4, "seed": 7}


class Desk:
    """A client of an app whose device is a fake; the result cache is off unless a test wants it."""

    def __init__(self, *families: Family, **settings: Any):
        self.devices: dict[str, FakeDevice] = {}
        self.stopped = threading.Event()
        folders = tuple(family.folder for family in families)
        self.settings = Settings(family=folders, **{"cache_bytes": 0, **settings})
        self.app = create_app(self.settings, families, self._make_device, stop=self.stopped.set)
        self.client = TestClient(self.app, raise_server_exceptions=False)

    @property
    def device(self) -> FakeDevice:
        """The device of the first family."""
        return next(iter(self.devices.values()))

    def _make_device(self, family: Family) -> FakeDevice:
        return self.devices.setdefault(family.name, FakeDevice())

    def __enter__(self) -> "Desk":
        self.client.__enter__()
        while self.client.get("/readyz").status_code == 503 and not self.stopped.is_set():
            pass
        return self

    def __exit__(self, *exception: Any) -> None:
        for device in self.devices.values():
            device.gate.set()
        self.client.__exit__(*exception)

    def ask(self, wish: Any = WISH, **headers: str) -> Any:
        """POST /generate; a str or bytes wish is the raw body."""
        content = wish if isinstance(wish, str | bytes) else json.dumps(wish)
        return self.client.post("/generate", content=content, headers={"content-type": "application/json"} | headers)


@contextmanager
def client_of(family: Family, engine: Engine) -> Iterator[TestClient]:
    """A client of an app that draws a family with its own engine, ready."""
    stopped = threading.Event()
    app = create_app(Settings(family=family.folder, max_wave=4), [family], lambda _: engine, stop=stopped.set)
    with TestClient(app) as client:
        while client.get("/readyz").status_code == 503 and not stopped.is_set():
            pass
        yield client


def pixels(data: bytes) -> np.ndarray:
    """Decode an image file."""
    return np.asarray(Image.open(io.BytesIO(data)))


def problem(answer: Any, status: int) -> dict[str, Any]:
    """Check that the answer is a problem of this status and return it."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    found: dict[str, Any] = answer.json()
    assert found["status"] == status and found["title"] and found["detail"] and found["type"].startswith("/problems/")
    assert "Traceback" not in answer.text and "site-packages" not in answer.text
    return found


def blamed(answer: Any) -> list[str]:
    """Check that the answer is a 422 and return the pointers it blames."""
    return [error["pointer"] for error in problem(answer, 422)["errors"]]


def value(desk: Desk, name: str, /, **labels: str) -> float:
    """Read the sum of a metric over the labels that are not given off /metrics; 0 where there is none yet."""
    families = text_string_to_metric_families(desk.client.get("/metrics").text)
    samples = (sample for family in families for sample in family.samples if sample.name == name)
    return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())
