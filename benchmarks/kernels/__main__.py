"""The command `python -m benchmarks.kernels`: measure the kernels on this machine, or write what was measured into a document."""

import argparse
import sys
from pathlib import Path
from shlex import join

import torch

from benchmarks.kernels.measure import PIECES, measure
from benchmarks.kernels.result import read_result, write_table

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENT = ROOT / "docs" / "performance.md"


def main() -> int:
    """Measure, write the result file, or its table, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    parser.add_argument("--pieces", default=",".join(PIECES), help="which, separated by commas")
    parser.add_argument("--seconds", type=float, default=2.0, help="how long each comparison is timed")
    parser.add_argument("--out", type=Path, help="result file; benchmarks/results/kernels-DEVICE.json by default")
    parser.add_argument(
        "--note", default="", help="what readers have to know, such as what the machine was shared with"
    )
    parser.add_argument("--report", action="store_true", help="measure nothing; write the table of --out into --file")
    parser.add_argument("--file", type=Path, default=DOCUMENT, help="Markdown file with the table's marks")
    asked = parser.parse_args()
    unknown = [piece for piece in asked.pieces.split(",") if piece not in PIECES]
    if unknown:
        parser.error(f"--pieces: {', '.join(unknown)} is not one of {', '.join(PIECES)}")
    if asked.device.split(":")[0] not in ("cpu", "cuda"):
        parser.error(f"--device: {asked.device} is neither cpu nor cuda")
    if asked.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("--device: PyTorch sees no CUDA device")
    device = torch.device(asked.device)
    out = asked.out or RESULTS / f"kernels-{device.type}.json"
    try:
        if asked.report:
            write_table(read_result(out), asked.file)
        else:
            command = join(["python", "-m", "benchmarks.kernels", *sys.argv[1:]])
            pieces = asked.pieces.split(",")
            for result in measure(pieces, device, seconds=asked.seconds, command=command, note=asked.note):
                result.write(out)
    except (OSError, ValueError) as error:
        print(f"benchmarks.kernels: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
