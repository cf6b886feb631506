"""The house: which package may import which, names, docstrings, and an import of `kernels` that cannot fail."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {  # package -> packages of ours it may import, besides itself
    "kernels": set(),
    "diffusion": {"kernels"},
    "training": {"diffusion", "kernels"},
    "server": {"diffusion", "kernels"},
    "benchmarks": {"diffusion", "kernels"},
    "deploy": {"benchmarks", "diffusion"},
}
FILES = [file for package in MAY_IMPORT for file in sorted((ROOT / package).rglob("*.py"))]
NAMED = {"ids": lambda file: str(file.relative_to(ROOT))}


def imported(file: Path) -> Iterator[str]:
    """Top-level names of everything a file imports, wherever in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").split(".")[0] if not node.level else file.relative_to(ROOT).parts[0]
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == "import_module":
            first = node.args[0]
            yield first.value.split(".")[0] if isinstance(first, ast.Constant) else ""


@pytest.mark.parametrize("file", FILES, **NAMED)
def test_imports_follow_the_arrows(file: Path):
    package = file.relative_to(ROOT).parts[0]
    ours = {name for name in imported(file) if name in MAY_IMPORT or name in ("tests", "stepdial")}
    assert ours - {package} <= MAY_IMPORT[package]


def public(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, ast.AST]]:
    """Public functions, classes and methods; properties and validators too.  A method that overrides torch's is known."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield f"{prefix}{node.name}", node
            if isinstance(node, ast.ClassDef):
                yield from public(node.body, f"{node.name}.")


@pytest.mark.parametrize("file", FILES, **NAMED)
def test_every_module_and_every_public_function_and_class_says_what_it_is(file: Path):
    tree = ast.parse(file.read_text())
    silent = [name for name, node in public(tree.body) if not ast.get_docstring(node)]
    silent = [name for name in silent if not name.endswith(".forward")]  # torch's own, described by its class
    assert ast.get_docstring(tree) and silent == []


def test_no_file_is_called_utils():
    names = {path.name.lower() for package in (*MAY_IMPORT, "tests") for path in (ROOT / package).rglob("*")}
    assert not names & {"utils", "utils.py", "util.py", "helpers.py", "misc.py", "common.py"}


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_imports_without_those_it_may_not_use(package: str):
    forbidden = set(MAY_IMPORT) - MAY_IMPORT[package] - {package}
    modules = [
        ".".join(file.relative_to(ROOT).with_suffix("").parts)
        for file in sorted((ROOT / package).rglob("*.py"))
        if not file.stem.startswith("__") and not file.stem.endswith("_triton")
    ]
    modules = [name for name in modules if all(map(str.isidentifier, name.split(".")))]  # the others are scripts
    code = f"import sys\nfor name in {forbidden!r}: sys.modules[name] = None\n" + "\n".join(
        f"import {name}" for name in modules
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_kernels_imports_without_triton_and_carries_no_version():
    code = "import sys; sys.modules['triton'] = None; import kernels; assert not hasattr(kernels, '__version__')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
