"""`python -m benchmarks.networks`: evaluations of one network in several ways, by batch size and threads."""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from benchmarks.networks.measure import compile_starts, evaluations, peaks, training
from benchmarks.networks.report import write_table
from benchmarks.networks.ways import ON_CPU, ON_GPU, WAYS, operations, random_network
from benchmarks.record import record
from diffusion import provenance
from diffusion.allocator import keep_freed_memory
from diffusion.family import open_family
from diffusion.uvit import PRESETS, UViT

ROOT = Path(__file__).parents[2]


def numbers(text: str) -> list[int]:
    """Return the numbers of "1,2,4"."""
    return [int(part) for part in text.split(",")]


def names(text: str) -> list[str]:
    """Return the ways of "fp32,bf16"."""
    found = text.split(",")
    if unknown := set(found) - set(WAYS):
        raise argparse.ArgumentTypeError(f"there is no way {', '.join(unknown)}; there are {', '.join(WAYS)}")
    return found


def parser() -> argparse.ArgumentParser:
    """Return what reads the command line."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.networks", description=__doc__)
    made.add_argument("--family", type=Path, default=ROOT / "families" / "shapes", help="its teacher is evaluated")
    made.add_argument("--preset", choices=sorted(PRESETS), help="instead: a network of this preset with random weights")
    made.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    made.add_argument("--ways", type=names, help="some of: " + ", ".join(WAYS))
    made.add_argument("--rows", type=numbers, default=[1, 2, 4, 8, 16], help="batch sizes")
    made.add_argument("--threads", type=int, default=torch.get_num_threads(), help="on a CPU")
    made.add_argument(
        "--allocator", choices=["keeping", "system"], default="keeping", help="what is freed is kept, or not"
    )
    made.add_argument("--rounds", type=int, default=15, help="how often each is timed, in turn with the others")
    made.add_argument("--matrix", type=int, help="height and width of the matrices whose product is the peak")
    made.add_argument("--train", type=int, metavar="ROWS", help="time training steps at this batch size too")
    made.add_argument("--starts", action="store_true", help="time compiling with an empty and with a filled cache too")
    made.add_argument("--note", default="", help="what else a reader has to know")
    made.add_argument("--out", type=Path, help="result file")
    made.add_argument("--report", type=Path, help="measure nothing; write the table of --out into this document")
    made.add_argument("--no-result", action="store_true", help="evaluate each once, for --starts")
    return made


def _network(asked: argparse.Namespace) -> UViT:
    if asked.preset:
        return random_network(PRESETS[asked.preset], asked.device)
    family = open_family(asked.family)
    assert family.manifest.teacher is not None
    found = family.network(family.manifest.teacher.name, asked.device)
    assert isinstance(found, UViT)
    return found


def _results(asked: argparse.Namespace, network: UViT, device: torch.device) -> list[dict[str, Any]]:
    ways = asked.ways or list(ON_GPU if device.type == "cuda" else ON_CPU)
    peak = peaks(device, asked.matrix)
    results: list[dict[str, Any]] = [{"peak_flops": peak}]
    for result in evaluations(network, ways, asked.rows, device, rounds=asked.rounds, peak=peak):
        results.append(result)
        print(json.dumps(result), flush=True)
    if asked.train:
        trained = [name for name in ways if name in ("fp32", "fp32-compiled")]  # autocast makes bf16 of them
        results += training(network, trained, asked.train, device, rounds=asked.rounds, peak=peak)
    if asked.starts:
        where = ["--preset", asked.preset] if asked.preset else ["--family", str(asked.family)]
        compiled = next(name for name in ways if WAYS[name].compiled)
        rows, threads = ",".join(map(str, asked.rows)), str(asked.threads)
        what = ["--device", asked.device, "--ways", compiled, "--rows", rows, "--threads", threads]
        results += compile_starts([*where, *what])
    return results


def main() -> None:
    """Measure, print, and write the result file."""
    asked, _ = parser().parse_args(), provenance.commit()  # of the code that runs, before it changes under a long run
    if asked.report:
        return write_table(asked.out, asked.report)
    torch.set_num_threads(asked.threads)
    if asked.allocator == "keeping":
        keep_freed_memory()
    device, network = torch.device(asked.device), _network(asked)
    if asked.no_result:
        for _ in evaluations(network, asked.ways, asked.rows, device, rounds=1, peak={"fp32": 1.0, "bf16": 1.0}):
            pass
        return
    settings = {
        name: value for name, value in vars(asked).items() if name not in ("out", "note", "no_result", "report")
    }
    settings |= {"family": asked.family.name, "operations_of_an_evaluation": operations(network.config)}
    results = _results(asked, network, device)
    found = record("benchmarks.networks", device, results, settings=settings, note=asked.note)
    if asked.out:
        found.write(asked.out)
    print(json.dumps(results[-1]))


if __name__ == "__main__":
    main()
