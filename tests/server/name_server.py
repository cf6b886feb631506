"""A real server process in front of the device that draws names, 20 ms a wave.

Prompts with "ring" lose the device, prompts with "navy" make it hang; it warms up for WARM_UP_SECONDS."""

import os
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from pydantic_settings import CliApp

from diffusion.family import open_family
from server import journal
from server.commands import run
from server.failures import DeviceLost
from server.pace import Timing
from server.samples import Turn, Underway
from server.settings import Settings
from tests.server.crowd import FakeDevice

RING, NAVY = 2, 2


class FragileDevice(FakeDevice):
    """Draws names until it is asked for a ring, or for something on navy."""

    def prepare(self) -> tuple[Timing, ...]:
        """Be ready after WARM_UP_SECONDS, a variable of the environment, by default at once."""
        time.sleep(float(os.environ.get("WARM_UP_SECONDS", "0")))
        return super().prepare()

    def wave(self, turns: Sequence[Turn]) -> list[Any] | Underway:
        """Take one evaluation of each turn, or be lost, or hang."""
        if any(turn.sample.condition[1:2] == (RING,) for turn in turns):
            raise DeviceLost("rings break this device")
        if any(turn.sample.condition[2:3] == (NAVY,) for turn in turns):
            threading.Event().wait()
        return super().wave(turns)


if __name__ == "__main__":
    settings = CliApp.run(Settings)
    journal.configure(settings.log_level, settings.log_format)
    sys.exit(run(settings, [*map(open_family, settings.folders)], lambda _: FragileDevice(seconds=0.02)))
