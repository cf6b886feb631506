"""The benchmark of the kernels: all of a comparison do the same job, take turns, and the document has what was measured."""

import sys
from pathlib import Path

import pytest
import torch

from benchmarks.kernels import films, layers, targets, updates
from benchmarks.kernels.__main__ import main
from benchmarks.kernels.clock import Clock
from benchmarks.kernels.comparison import OURS
from benchmarks.kernels.result import read_result, table

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


def flat(result: object) -> torch.Tensor:
    tensors = result if isinstance(result, tuple | list) else (result,)
    return torch.cat([tensor.flatten().double() for tensor in tensors])


@pytest.mark.parametrize("piece", [updates.hops, layers.forward, layers.backward, targets.targets])
def test_all_of_a_comparison_do_the_same_job(piece):
    for comparison in piece(CPU):
        ours = flat(comparison.functions[OURS]())
        for name, function in comparison.functions.items():
            if name not in (
                "torch.compile",
                "diffusers LCMScheduler.step",
            ):  # the first compiles, the second adds noise
                assert (flat(function()) - ours).norm() < 1e-4 * ours.norm(), (comparison.job, name)


def test_all_last_hops_end_in_the_same_bytes():
    comparison = next(updates.last_hops(CPU))
    ours = comparison.functions[OURS]()
    for name, function in comparison.functions.items():
        if name != "torch.compile":
            assert (function().int() - ours.int()).abs().max() <= 1, name


def test_films_are_the_same_in_one_product():
    for comparison in films.films(CPU):
        one, other = (torch.cat(list(function()), dim=1) for function in comparison.functions.values())
        torch.testing.assert_close(one, other)


def test_functions_are_timed_in_turns():
    calls: list[str] = []
    times = Clock(CPU, seconds=0.0).compare({name: lambda name=name: calls.append(name) for name in "abc"}, least=4)
    assert calls[-12:] == list("abc" * 4) and all(taken.calls == 4 for taken in times.values())
    assert all(taken.low <= taken.median <= taken.high for taken in times.values())


def test_the_document_has_the_table_of_the_result_file():
    result = read_result(ROOT / "benchmarks" / "results" / "kernels-cpu.json")
    text = (ROOT / "docs" / "performance.md").read_text()
    assert text.split("<!-- kernels cpu -->\n")[1].startswith(table(result) + "<!-- end -->")


@pytest.mark.parametrize(("flag", "value"), [("--pieces", "hups"), ("--device", "tpu")])
def test_the_command_refuses_what_it_does_not_know_by_name(flag, value, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks.kernels", flag, value])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2 and value in capsys.readouterr().err
