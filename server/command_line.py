"""What the command line says to people: the help of a command, and what is wrong with an argument."""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic_settings import CliSettingsSource

from server.failures import shown

UNITS = ("seconds", "bytes", "port", "host", "url", "file")
"""Last words of flags that say what to write there."""
WORDS = {"int": "N", "float": "NUMBER", "str": "TEXT", "Path": "FOLDER", "IPvAnyNetwork": "ADDRESS"}
"""What to write for a type, by how the library names it."""
DEFAULT = re.compile(r" \(default(: null|: \(.*\)| factory: .*)\)$")
"""Defaults that are told in words instead."""


def readable(source: CliSettingsSource[Any]) -> CliSettingsSource[Any]:
    """Return the source with a help that shows what a person would write, instead of types."""
    pending: list[argparse.ArgumentParser] = [source.root_parser]
    while pending:
        parser = pending.pop()
        parser.description = inspect.cleandoc(parser.description or "")
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                pending += action.choices.values()
            elif isinstance(action.metavar, str) and action.option_strings:
                action.metavar = _word(action.option_strings[-1], action.metavar)
            action.help = action.help and DEFAULT.sub("", action.help)
    return source


def told(item: Mapping[str, Any], settings: type[BaseModel]) -> str:
    """Return one of pydantic's errors as a sentence: which argument, what it was, what is allowed. Secrets are not repeated."""
    name = str(item["loc"][0]) if item["loc"] else ""
    sentence = item["msg"].removeprefix("Value error, ").replace("Input should", "it should")
    if not name:
        return sentence
    field = settings.model_fields.get(name)
    got = f"got {shown(item['input'])}, " if field and field.repr and item["type"] != "missing" else ""
    return f"{'.'.join(map(str, item['loc']))}: {got}{sentence}"


def _word(flag: str, types: str) -> str:
    """What to write after a flag; choices stay as they are."""
    last = flag.rpartition("-")[2]
    if last in UNITS:
        return last.upper()
    one = types.removeprefix("tuple[").removesuffix(",...]")
    several = "" if one == types else ",..."
    return WORDS.get(one.removeprefix("{").removesuffix(",null}"), one) + several
