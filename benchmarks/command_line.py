"""The command lines of benchmarks and drills: what was given, or a sentence about each argument that is wrong."""

import asyncio
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_settings import BaseSettings, CliApp, CliSettingsSource, SettingsError, get_subcommand

S = TypeVar("S", bound=BaseSettings)

NEEDED = "stepdial: this needs the packages of an extra: pip install -e '.[bench]'"


def given(settings: type[S], arguments: Sequence[str], *, name: str) -> S | None:
    """Return what the arguments say, or None after a sentence on stderr about each that is wrong.

    name: how the command is called, such as "stepdial bench".
    """
    source: CliSettingsSource = CliSettingsSource(settings, cli_prog_name=name)
    try:
        return CliApp.run(settings, cli_args=list(arguments), cli_settings_source=source)
    except ValidationError as error:
        for wrong in error.errors(include_url=False):
            print(f"{name.removeprefix('python -m ')}: {_sentence(wrong, settings)}", file=sys.stderr)
    except SettingsError as error:  # a list that is none in JSON
        print(f"{name.removeprefix('python -m ')}: {error}", file=sys.stderr)
    return None


def given_command(settings: type[BaseSettings], arguments: Sequence[str], *, name: str) -> object | None:
    """Return which of the subcommands, which all fields are, was given, or None after sentences as `given` prints them."""
    found = given(settings, arguments, name=name)
    if found is None:
        return None
    try:
        return get_subcommand(found, cli_exit_on_error=False)
    except SettingsError:
        *others, last = settings.model_fields
        what = f"{', '.join(others)} or {last}"
        print(f"{name.removeprefix('python -m ')}: say what: {what}; --help tells more", file=sys.stderr)
    return None


def ended(work: Callable[[], None], *, name: str) -> int:
    """Do what a command is for and return its exit status, with a sentence on stderr for all but 0.

    1: something cannot be read, started or measured, or a package is missing; 130: SIGINT.
    """
    name = name.removeprefix("python -m ")
    try:
        from benchmarks.load.client import NotServed
        from diffusion.family import FamilyError

        try:
            work()
        except (NotServed, FamilyError, ValueError, OSError) as error:
            print(f"{name}: {error}", file=sys.stderr)
            return 1
    except ImportError as error:
        print(f"{NEEDED} ({error})", file=sys.stderr)
        return 1
    except (asyncio.CancelledError, KeyboardInterrupt):
        print(f"{name}: interrupted; what was started is ended", file=sys.stderr)
        return 130
    return 0


def _sentence(wrong: Mapping[str, Any], settings: type[BaseModel]) -> str:
    """Return one of pydantic's errors as a sentence; without what was given where that may be everything, keys included."""
    message = wrong["msg"].removeprefix("Value error, ")
    if not wrong["loc"]:
        return message
    first, *rest = wrong["loc"]
    within = [part for part in get_args(settings.model_fields[first].annotation) if isinstance(part, type)]
    for command in (part for part in within if rest and issubclass(part, BaseModel)):
        return _sentence({**wrong, "loc": rest}, command)
    positional = settings.model_fields[first].is_required()  # what has flags has defaults
    flag = first if positional else f"{'-' if len(first) == 1 else '--'}{first.replace('_', '-')}"
    return f"{flag} is missing" if wrong["type"] == "missing" else f"{flag}: {message}, got {wrong['input']!r}"
