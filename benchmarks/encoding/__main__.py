"""`python -m benchmarks.encoding`: measure every format at every size, and write the result and its table."""

import sys
from importlib.metadata import version
from pathlib import Path

from PIL import features
from pydantic_settings import BaseSettings, SettingsConfigDict

from benchmarks.command_line import given
from benchmarks.encoding.cost import SETTINGS, SIDES, Costs, cost
from benchmarks.encoding.images import KINDS, image
from benchmarks.encoding.table import write_table
from diffusion import provenance

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


class Encoding(BaseSettings):
    """Measure what image files cost by format, settings and size, on one thread; and write the table."""

    model_config = SettingsConfigDict(
        extra="forbid", use_attribute_docstrings=True, cli_kebab_case=True, cli_implicit_flags=True
    )

    family: Path = ROOT / "families" / "shapes"
    """Folder of the family whose images are encoded, beside what is like photographs."""
    out: Path = HERE / "costs.json"
    """JSON file for the result."""
    file: Path = ROOT / "docs" / "performance.md"
    """Markdown file with the table."""
    only_table: bool = False
    """Measure nothing, and write the table from the result that is there."""
    note: str = ""
    """What readers of the result have to know, such as what the machine was shared with."""


def main(arguments: list[str]) -> int:
    """Run the command; returns the exit status: 0, 1 when something cannot be read or written, 2 for a wrong argument."""
    settings = given(Encoding, arguments, name="python -m benchmarks.encoding")
    if settings is None:
        return 2
    try:
        if not settings.only_table:
            measure(settings).write(settings.out)
        write_table(Costs.model_validate_json(settings.out.read_text()), settings.file)
    except (OSError, ValueError) as error:
        print(f"benchmarks.encoding: {error}", file=sys.stderr)
        return 1
    return 0


def measure(settings: Encoding) -> Costs:
    """Return what every format costs at every size. Raises FamilyError."""
    began, found = provenance.now(), []
    for kind in KINDS:
        for side in SIDES:
            pixels = image(kind, side, settings.family)
            found += [cost(pixels, kind, name) for name in SETTINGS]
            print(f"{kind} {side}: " + ", ".join(f"{one.settings} {one.milliseconds:.2f} ms" for one in found[-9:]))
    return Costs(
        command=" ".join(["python -m benchmarks.encoding", *sys.argv[1:]]),
        note=settings.note,
        measured_at=began,
        commit=provenance.commit(),
        device=provenance.processor(),
        versions={
            "pillow": version("pillow"),
            "zlib": str(features.version("zlib-ng") or features.version("zlib")),
            "webp": str(features.version("webp")),
            "libjpeg": str(features.version("jpg")),
        },
        costs=tuple(found),
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
