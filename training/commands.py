"""The commands of training by name: `stepdial train`, `distill`, `ablate`, `evaluate`, `report`, `curve`, `sample`, `families`."""

from training.command import FAILURES, Command
from training.making import Ablate, Distill, Train
from training.measuring import Curve, Evaluate, Report
from training.showing import Families, Sample

COMMANDS: dict[str, type[Command]] = {
    command.__name__.lower(): command for command in (Train, Distill, Ablate, Evaluate, Report, Curve, Sample, Families)
}

__all__ = ["COMMANDS", "FAILURES"]
