"""README and docs say what is true: tables come from result files, links lead somewhere, commands exist."""

import io
import re
import subprocess
import sys
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path
from unittest.mock import patch

import pytest

import stepdial
from diffusion.family import open_family
from diffusion.manifest import TEACHER_STEPS
from training.report import TABLES

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "benchmarks").glob("*.md"))]
FAMILIES = sorted(path.parent for path in (ROOT / "families").glob("*/family.json"))


@cache
def shown_help(command: str) -> str:
    """What `stepdial COMMAND --help` prints."""
    said = io.StringIO()
    with patch.object(sys, "argv", ["stepdial", command, "--help"]), redirect_stdout(said):
        try:
            status = stepdial.main()
        except SystemExit as ended:
            status = ended.code
    assert not status, command
    return said.getvalue()


@pytest.mark.parametrize("folder", FAMILIES, ids=lambda folder: folder.name)
def test_the_tables_of_bundled_families_are_what_their_frontiers_say(folder: Path) -> None:
    family = open_family(folder)
    for kind, table in TABLES.items():
        marked = re.compile(rf"<!-- {kind} {family.name} -->\n(.*?)<!-- end -->", re.DOTALL)
        tables = [found[1] for document in DOCUMENTS for found in marked.finditer(document.read_text())]
        assert tables in ([table(family)], [] if kind != "dial" else None), kind


@pytest.mark.parametrize("folder", FAMILIES, ids=lambda folder: folder.name)
def test_every_student_of_a_bundled_family_and_its_teacher_were_measured(folder: Path) -> None:
    family = open_family(folder)
    assert family.frontier is not None
    members = [member for member in family.manifest.members if member.role != "teacher"]
    own = [member.plan(steps) for member in members for steps in member.positions if steps < TEACHER_STEPS[0]]
    assert own and all(family.measured(plan) for plan in [*own, family.positions[TEACHER_STEPS[0]]])


def test_the_bundled_families_are_small_enough_to_clone() -> None:
    size = sum(file.stat().st_size for file in (ROOT / "families").rglob("*") if file.is_file())
    assert size < 60e6


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_every_link_and_picture_of_a_document_exists(document: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text())
    local = [target for target in targets if "://" not in target]
    assert all((document.parent / target).exists() for target in local), local


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_every_stepdial_command_and_flag_that_a_document_names_exists(document: Path) -> None:
    lines = re.findall(
        r"stepdial (serve|look|train|import|distill|evaluate|ablate|health|sample|export|curve|report|families|openapi|bench|check)"
        r"((?: +[^`\n|]+)?)",
        document.read_text(),
    )
    for command in {command for command, _ in lines}:
        flags = {flag for name, rest in lines if name == command for flag in re.findall(r"(?<!\S)--[a-z-]+", rest)}
        assert all(flag in shown_help(command) for flag in flags), (command, flags)


def test_every_command_of_the_makefile_exists_with_its_flags() -> None:
    goals = ["family", "measure", "pictures", "serve"]
    planned = subprocess.run(
        ["make", "--dry-run", "--always-make", "CORES=2", *goals], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    lines = re.findall(r"bin/stepdial (\w+)([^;\n]*)", planned)
    assert {"train", "distill", "evaluate", "report", "sample", "curve", "serve"} == {command for command, _ in lines}
    for command in {command for command, _ in lines}:
        flags = {flag for name, rest in lines if name == command for flag in re.findall(r"(?<!\S)--[a-z-]+", rest)}
        assert all(flag in shown_help(command) for flag in flags), (command, flags)
