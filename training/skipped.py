"""What a data set holds that cannot be trained on: each thing named once, however often it is met, over resumes too."""

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from tqdm import tqdm

NAMED = 5
"""How many are named on the terminal; after that each tenfold number is said, and the file has them all."""


class Skipped:
    """Images that were left out, and why."""

    def __init__(self) -> None:
        self._reasons: dict[str, str] = {}
        self._file: Path | None = None

    def __len__(self) -> int:
        return len(self._reasons)

    def __str__(self) -> str:
        where = f"; {self._file.name} names them" if self._file else ""
        return f"{len(self):,} skipped as unusable{where}"

    def keep(self, file: Path) -> None:
        """Write down in this file, a JSON line each, what was and will be noted, and take what it holds for known."""
        known = dict(_entries(file.read_text())) if file.exists() else {}
        self._reasons, self._file = known | self._reasons, file
        file.write_text("")
        self._write(self._reasons)

    def note(self, found: Iterable[tuple[str, str]]) -> None:
        """Count those (name, reason) that are new, write them down, and say so, briefly when there are many."""
        fresh = {name: reason for name, reason in found if name not in self._reasons}
        for name, reason in fresh.items():
            self._reasons[name] = reason
            count = len(self)
            if count <= NAMED:
                tqdm.write(f"skipped {name}: {reason}", file=sys.stderr)
            elif str(count).strip("0") == "1":
                tqdm.write(str(self), file=sys.stderr)
        self._write(fresh)

    def _write(self, fresh: dict[str, str]) -> None:
        if self._file and fresh:
            with self._file.open("a") as file:
                file.writelines(json.dumps({"name": name, "reason": reason}) + "\n" for name, reason in fresh.items())


def _entries(text: str) -> Iterator[tuple[str, str]]:
    """Give the names and reasons of a file whose last line may have been cut off by a power failure."""
    for line in text.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        yield entry["name"], entry["reason"]
