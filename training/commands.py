"""The commands of training by name: `stepdial look`, `train`, `import`, `distill`, `evaluate`, `health`, `sample`, `export` ..."""

from training.ablating import Ablate
from training.command import FAILURES, Command
from training.distilling import Distill
from training.exporting import Export
from training.failures import misgiven, tell_launcher
from training.health import Health
from training.importing import Import
from training.looking import Look
from training.making import Train
from training.measuring import Curve, Evaluate, Report
from training.showing import Families, Sample

COMMANDS: dict[str, type[Command]] = {
    command.__name__.lower(): command
    for command in (Look, Train, Import, Distill, Ablate, Evaluate, Health, Report, Curve, Sample, Export, Families)
}

__all__ = ["COMMANDS", "FAILURES", "misgiven", "tell_launcher"]
