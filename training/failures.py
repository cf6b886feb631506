"""What stops a command with one sentence instead of a traceback."""

import json
import os
import time
from pathlib import Path

from pydantic import ValidationError


class CommandError(Exception):
    """What the flags ask for cannot be done; the message names the flag and what is allowed."""


class TrainingError(RuntimeError):
    """Training that cannot begin or go on; the message names the settings, or the iteration and the cause."""


def misgiven(error: ValidationError) -> list[str]:
    """Return of each flag that is given wrongly its name, what is allowed, and what was given."""
    lines = []
    for wrong in error.errors(include_url=False):
        flag = "--" + str(wrong["loc"][0]).replace("_", "-") if wrong["loc"] else "the flags"
        missing = wrong["type"] == "missing" and len(wrong["loc"]) == 1
        lines.append(
            f"{flag} is missing" if missing else f"{flag}: {without_prefix(wrong['msg'])}, got {wrong['input']!r}"
        )
    return lines


def first_fault(error: ValidationError) -> str:
    """Return where a file does not fit, and why: "members.0.name: must be ..."."""
    first = error.errors(include_url=False, include_context=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or 'the file'}: {without_prefix(first['msg'])}"


def without_prefix(message: str) -> str:
    """Return what a validator says without what pydantic puts before it."""
    return message.removeprefix("Value error, ")


def tell_launcher(sentence: str) -> None:
    """Leave a sentence for torchrun, if it started this process, to end its report with instead of a hint at tracebacks."""
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        when = {"timestamp": str(int(time.time()))}
        Path(file).write_text(json.dumps({"message": {"message": sentence, "extraInfo": when}}))
