"""`stepdial sample`, `families`: what shows a family."""

import random
from pathlib import Path

import torch
from pydantic import Field

from diffusion.condition import ConditionError
from diffusion.family import Family, FamilyError, open_family
from diffusion.frontier import Source
from diffusion.pictures import grid, save_picture
from diffusion.plans import Plan
from training.command import Command, choose_device, integers
from training.failures import CommandError
from training.members import draw
from training.relabelled import TAKES

USUAL_STEPS = 4
"""Dial position of a grid when nobody asks for another."""


class Sample(Command):
    """Draw pictures of a family into a grid, without a server."""

    family: Path
    """Folder of the family."""
    steps: str | None = None
    """Dial position; several separated by commas give one row each, of the same seeds and prompts. By default 4, or the
    nearest that the family offers."""
    source: Source | None = None
    """Way of drawing it where the family has several; by default the one that it serves."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of the noise; picture i of the grid is image i of this seed."""
    count: int = Field(default=16, ge=1, le=4096)
    """Number of pictures (of each dial position)."""
    out: Path
    """PNG file to write."""
    prompt: str | None = None
    """What to draw, for a family that takes prompts; several separated by ";" take turns. By default drawn from the seed."""
    label: str | None = None
    """The same for a family that takes labels."""
    guidance: float | None = Field(default=None, ge=0)
    """Guidance w of the teacher's positions, and of students that are told theirs; by default the family's, or the student's."""
    columns: int | None = Field(default=None, ge=1)
    """Pictures in a row; by default a square, or all of them with several dial positions."""
    zoom: int = Field(default=4, ge=1, le=32)
    """How many times each pixel is magnified."""
    device: str = "auto"
    """cpu, cuda, cuda:1, or auto: the GPU if there is one."""

    def cli_cmd(self) -> None:
        """Draw."""
        family = open_family(self.family)
        positions = [_nearest(family, USUAL_STEPS)] if self.steps is None else integers(self.steps, "steps")
        for steps in positions:
            if steps not in family.positions:
                raise CommandError(
                    f"steps {steps} is not offered; family {family.name!r} has {', '.join(map(str, family.positions))}"
                )
        plans = [self._plan(family, steps) for steps in positions]
        asked = self._conditions(family)
        said = [family.manifest.conditioning.describe(values) for values in asked]
        condition = torch.tensor(asked, dtype=torch.int64).reshape(self.count, -1)
        seeds, indices = [self.seed] * self.count, list(range(self.count))
        device = choose_device(self.device)
        try:
            drawn = [
                draw(family, plan, condition, seeds=seeds, indices=indices, guidance=self.guidance, device=device)
                for plan in plans
            ]
        except ValueError as error:
            raise CommandError(str(error)) from None
        several = len(positions) > 1
        columns = self.columns or (self.count if several else max(1, round(self.count**0.5)))
        rows, feet = ([], []) if not several or columns != self.count else ([f"{n}" for n in positions], said)
        save_picture(grid(torch.cat(drawn), columns, zoom=self.zoom, rows=rows, feet=feet), self.out)
        print(f"wrote {self.out}" + (f", of position {positions[0]}" if self.steps is None else ""))

    def _plan(self, family: Family, steps: int) -> Plan:
        if self.source is None:
            return family.positions[steps]
        found = [plan for plan in family.plans(steps) if family.source(plan) == self.source]
        if not found:
            raise CommandError(f"steps {steps} is not drawn by {self.source} in family {family.name!r}")
        return found[0]

    def _conditions(self, family: Family) -> list[tuple[int, ...]]:
        conditioning = family.manifest.conditioning
        asked = self.prompt if self.prompt is not None else self.label
        if asked is None:
            rng = random.Random(self.seed)
            return [conditioning.draw(rng) for _ in range(self.count)]
        field = "prompt" if self.prompt is not None else "label"
        try:
            wishes = [conditioning.encode(**{field: wish.strip()}) for wish in asked.split(";") if wish.strip()]
        except ConditionError as error:
            raise CommandError(str(error)) from None
        return [wishes[index % len(wishes)] for index in range(self.count)] if wishes else []


def _nearest(family: Family, steps: int) -> int:
    """Return the position nearest to some steps, of two that are as near the smaller."""
    return min(family.positions, key=lambda offered: (abs(offered - steps), offered))


class Families(Command):
    """List the families below a folder: members, sizes, dial positions, and whether every file is what was written."""

    folder: Path = Path("families")
    """Folder whose subfolders are families."""

    def cli_cmd(self) -> None:
        """List."""
        for folder in sorted(path for path in self.folder.glob("*") if path.is_dir()):
            try:
                family = open_family(folder)
            except FamilyError as error:
                print(f"{folder.name}: REFUSED: {error}")
                continue
            manifest = family.manifest
            size = sum((folder / member.weights.file).stat().st_size for member in manifest.members) / 1e6
            print(
                f"{family.name}: {manifest.resolution}x{manifest.resolution}, {TAKES[manifest.conditioning.kind]}, {size:.1f} MB"
            )
            for member in manifest.members:
                print(
                    f"  {member.name:12} {member.parameters / 1e6:.2f} M parameters, {member.training.images:,} images seen"
                )
            measured = {position.steps for position in family.frontier.positions} if family.frontier else set()
            print(
                "  steps "
                + ", ".join(
                    f"{steps}" if steps in measured else f"{steps} (not measured)" for steps in family.positions
                )
            )
