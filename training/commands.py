"""The commands of training by name: `stepdial look`, `train`, `distill`, `ablate`, `evaluate`, `health`, `report`, `sample` ..."""

from training.command import FAILURES, Command
from training.health import Health
from training.looking import Look
from training.making import Ablate, Distill, Train
from training.measuring import Curve, Evaluate, Report
from training.showing import Families, Sample

COMMANDS: dict[str, type[Command]] = {
    command.__name__.lower(): command
    for command in (Look, Train, Distill, Ablate, Evaluate, Health, Report, Curve, Sample, Families)
}

__all__ = ["COMMANDS", "FAILURES"]
