"""A real server process in front of the device that draws names, 20 ms a wave; prompts with "ring" lose the device."""

import logging
import sys
from collections.abc import Sequence
from typing import Any

from pydantic_settings import CliApp

from diffusion.family import open_family
from server.commands import run
from server.failures import DeviceLost
from server.samples import Turn
from server.settings import Settings
from tests.server.crowd import FakeDevice

RING = 2


class FragileDevice(FakeDevice):
    """Draws names until it is asked for a ring."""

    def wave(self, turns: Sequence[Turn]) -> list[Any]:
        """Take one hop of each turn, or be lost."""
        if any(turn.sample.condition[1:2] == (RING,) for turn in turns):
            raise DeviceLost("rings break this device")
        return super().wave(turns)


if __name__ == "__main__":
    logging.basicConfig(level="INFO")
    settings = CliApp.run(Settings)
    sys.exit(run(settings, open_family(settings.family), FragileDevice(seconds=0.02)))
