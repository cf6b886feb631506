"""The OpenAPI document: committed as it is served."""

import json
import subprocess
import sys

from server.contract import document_text
from tests.server.desk import Desk
from tests.server.processes import ROOT

COMMITTED = ROOT / "docs" / "openapi.json"


def test_the_committed_document_is_the_one_that_is_served(desk: Desk) -> None:
    assert desk.client.get("/openapi.json").json() == json.loads(COMMITTED.read_text())
    assert document_text(desk.app) == COMMITTED.read_text(), "stepdial openapi > docs/openapi.json"


def test_the_command_prints_the_document() -> None:
    done = subprocess.run([sys.executable, ROOT / "stepdial.py", "openapi"], capture_output=True, text=True, check=True)
    assert done.stdout == COMMITTED.read_text()
