"""The command `stepdial keys`."""

import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    CliApp,
    CliPositionalArg,
    CliSettingsSource,
    CliSubCommand,
    SettingsConfigDict,
    get_subcommand,
)

from server.command_line import readable, told
from server.keys import KeysError, Name, Scope, add_key, read_keys, remove_key


class Add(BaseModel):
    """Make a key and print it, this once; the file keeps only its hash."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    name: CliPositionalArg[Name]
    """Whose key it is; appears in the server's logs."""
    scopes: tuple[Scope, ...] = ("draw",)
    """What it is good for: draw, admin, or draw,admin. Default: draw."""
    evaluations_per_minute: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Its own rate limit, in network evaluations per minute; default the server's."""


class List(BaseModel):
    """List the keys: name, scopes, rate limit, when it was made."""


class Remove(BaseModel):
    """Remove a key; a running server refuses it from then on."""

    name: CliPositionalArg[str]


class Keys(BaseSettings):
    """Keep the file of API keys that `stepdial serve --keys-file` reads."""

    model_config = SettingsConfigDict(
        env_prefix="STEPDIAL_", extra="ignore", use_attribute_docstrings=True, cli_kebab_case=True
    )

    keys_file: Path = Path("keys.json")
    """The file; made by the first key."""
    add: CliSubCommand[Add]
    list: CliSubCommand[List]
    remove: CliSubCommand[Remove]


def keys(arguments: Sequence[str]) -> int:
    """Add, list or remove a key. Returns the exit status: 1 when the file refuses, 2 for a wrong argument."""
    source = readable(CliSettingsSource(Keys, cli_prog_name="stepdial keys"))
    try:
        command = CliApp.run(Keys, cli_args=list(arguments), cli_settings_source=source)
        _run(command.keys_file, get_subcommand(command))
    except ValidationError as error:
        for item in error.errors(include_url=False):
            print(f"stepdial keys: {told(item, Keys)}", file=sys.stderr)
        return 2
    except KeysError as error:
        print(f"stepdial keys: {error}", file=sys.stderr)
        return 1
    return 0


def _run(file: Path, command: object) -> None:
    if isinstance(command, Add):
        rate = command.evaluations_per_minute
        print(add_key(file, command.name, scopes=command.scopes, evaluations_per_minute=rate))
    elif isinstance(command, Remove):
        remove_key(file, command.name)
    else:
        for key in read_keys(file):
            own = f"{key.evaluations_per_minute:g}/min" if key.evaluations_per_minute else "-"
            print(f"{key.name}\t{','.join(key.scopes)}\t{own}\t{key.created_at}")
