"""The tables of scale are what the result files say, the command does what it says, and the runbook knows every alert."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.scale.commands import COSTS, SHAPES, TRIALS
from benchmarks.scale.facts import Facts, read_facts
from benchmarks.scale.report import TABLES, load_lines, write_tables
from benchmarks.scale.sizing import MIX, UTILISATION, Server, first_objective, mixed

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "docs" / "operations.md", ROOT / "docs" / "scale.md"]
ALERTS = ROOT / "deploy" / "prometheus" / "alerts.yml"


@pytest.fixture(scope="module")
def facts() -> Facts:
    return read_facts(SHAPES, COSTS, TRIALS)


def test_every_table_stands_in_a_document_as_the_result_files_say(facts: Facts):
    text = "".join(document.read_text() for document in DOCUMENTS)
    for kind, table in TABLES.items():
        found = re.findall(rf"<!-- {kind} -->\n(.*?)<!-- end -->", text, re.DOTALL)
        assert found == [table(facts)], f"{kind}: make scale"


def test_queueing_was_simulated_with_the_speeds_that_the_frontier_has_now(facts: Facts):
    assert facts.trials.capacity == pytest.approx(mixed(facts.speeds, MIX)), "make scale"


def test_first_objectives_hold_at_the_planned_load_as_far_as_it_was_simulated(facts: Facts):
    planned = [t for t in facts.trials.trials if t.load == UTILISATION and t.room is None and t.policy == "leastconn"]
    assert {trial.replicas for trial in planned} == {1, 10, 100}
    for trial in planned:
        assert all(times.p99 / 1000 <= first_objective(facts.speeds[steps]) for steps, times in trial.by_steps.items())


def test_a_report_is_the_same_when_it_is_written_again(facts: Facts, tmp_path: Path):
    file = tmp_path / "page.md"
    file.write_text("before\n<!-- limits -->\nold\n<!-- end -->\nafter\n")
    write_tables(facts, file)
    once = file.read_text()
    write_tables(facts, file)
    assert file.read_text() == once and "old" not in once and once.startswith("before\n") and once.endswith("after\n")


def test_a_page_without_marks_is_refused(facts: Facts, tmp_path: Path):
    file = tmp_path / "page.md"
    file.write_text("nothing\n")
    with pytest.raises(ValueError, match="no marks"):
        write_tables(facts, file)


def test_a_load_is_sized_with_its_price(facts: Facts):
    lines = load_lines(facts.frontier, Server(0.0, None), {1: 1.0}, 100, utilisation=0.5, spare=0, price=2.0)
    rate = facts.speeds[1].images_per_second
    replicas = -(-200 // rate)
    assert f"{replicas:.0f} replicas" in lines[1]
    assert lines[-1] == f"price of a million images: {1e6 * replicas / 100 / 3600 * 2:.2f}"


def scale(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "stepdial.py"), "scale", *arguments], capture_output=True, text=True, timeout=120
    )


def test_the_command_sizes_a_fleet_for_a_newcomer():
    done = scale("size", "--rate", "50", "--price", "0.2")
    assert done.returncode == 0, done.stderr
    assert "replicas, each at" in done.stdout and "price of a million images" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence", "status"),
    [
        (["size", "--mix", "auto"], "auto is no position", 2),
        (["size", "--mix", "9"], "not measured: 9 steps; measured are 1, 2", 1),
        (["size", "--utilisation", "1.5"], "utilisation", 2),
        (["size", "--family", "nowhere"], "nowhere", 1),
        ([], "say what: size", 2),
    ],
)
def test_the_command_says_in_a_sentence_what_is_wrong(arguments: list[str], sentence: str, status: int):
    done = scale(*arguments)
    assert (done.returncode, sentence in done.stderr, "Traceback" in done.stderr) == (status, True, False), done.stderr


def test_every_alert_has_a_section_of_the_runbook_at_the_end_of_its_link():
    headings = re.findall(r"^### (\w+)$", DOCUMENTS[0].read_text(), re.MULTILINE)
    if not ALERTS.exists():
        assert os.environ.get("CI") != "true", "there are no alerts to compare the runbook with"
        pytest.skip("no deploy/prometheus/alerts.yml: the runbook was not compared with it")
    alerts = re.findall(r"- alert: (\w+)", ALERTS.read_text())
    anchors = re.findall(r"runbook: docs/operations.md#(\w+)", ALERTS.read_text())
    assert sorted(headings) == sorted(alerts)
    assert anchors == [name.lower() for name in alerts]
