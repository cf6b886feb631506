"""`python -m benchmarks.networks`: every way of evaluating is timed and checked, and the documents have what was measured."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.networks import __main__ as command
from benchmarks.networks.report import table
from benchmarks.record import Record

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "performance.md"


@pytest.fixture
def threads() -> Any:
    """Threads are what they were afterwards."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_evaluations_and_training_are_timed_and_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: None
) -> None:
    out = tmp_path / "result.json"
    asked = ["--preset", "debug", "--rows", "1,4", "--rounds", "2", "--ways", "fp32,fp32-plain,bf16,fp32-graph"]
    asked += ["--device", "cpu", "--threads", "1", "--matrix", "64", "--train", "2", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["benchmarks.networks", *asked])
    command.main()
    found = Record.model_validate_json(out.read_bytes())
    timed = [result for result in found.results if "seconds" in result]
    evaluated = [(result["way"], result["rows"]) for result in timed if "way" in result]
    assert evaluated == [(way, rows) for rows in (1, 4) for way in ("fp32", "fp32-plain", "bf16")]
    errors = {result["way"]: result["relative_error"] for result in timed if "way" in result}
    assert errors["fp32"] < 1e-6 and 0 < errors["bf16"] < 3e-2
    assert [result["training"] for result in timed if "training" in result] == ["fp32"]
    assert [result["way"] for result in found.results if "failed" in result] == ["fp32-graph"]  # graphs take a GPU
    assert all(result["seconds"]["median"] > 0 and result["utilisation"] > 0 for result in timed)


@pytest.mark.parametrize("name", re.findall(r"<!-- networks (\S+) -->", DOCUMENT.read_text()))
def test_the_document_has_what_was_measured(name: str) -> None:
    found = re.search(rf"<!-- networks {name} -->\n(.*?)<!-- end -->", DOCUMENT.read_text(), re.DOTALL)
    file = ROOT / "benchmarks" / "networks" / f"{name}.json"
    assert found and found[1] == table(file), "python -m benchmarks.networks --out FILE --report docs/performance.md"
    assert not json.loads(file.read_text())["commit"].endswith("-dirty")
