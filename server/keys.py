"""API keys: who may draw, who may administrate. The file holds hashes; a key itself is shown once, when it is made."""

import hashlib
import hmac
import logging
import os
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

log = logging.getLogger(__name__)

Scope = Literal["draw", "admin"]
"""What a key is good for: draw (every route that costs the device something), admin (the routes below /admin)."""
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class KeysError(ValueError):
    """A file of keys that cannot be used, or a change to it that makes no sense, in one sentence."""


class Key(BaseModel):
    """What the file knows about a key."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: Name
    """Whose key it is; appears in logs."""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """SHA-256 of the key, in hexadecimal. Keys are 256 random bits, so that a slow hash would protect nothing."""
    scopes: tuple[Scope, ...] = ("draw",)
    evaluations_per_minute: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Rate limit of this key; None for the server's."""
    created_at: str
    """When, in UTC, ISO 8601."""


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    keys: tuple[Key, ...] = ()


def read_keys(file: Path) -> tuple[Key, ...]:
    """Return the keys of a file. Raises KeysError."""
    try:
        return _File.model_validate_json(file.read_bytes()).keys
    except OSError:
        raise KeysError(f"the file of keys {file.name!r} is missing or cannot be read") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise KeysError(f"the file of keys {file.name!r} is not valid: {where}: {first['msg']}") from None


def add_key(
    file: Path, name: str, *, scopes: tuple[Scope, ...] = ("draw",), evaluations_per_minute: float | None = None
) -> str:
    """Make a key, write its hash into the file, and return the key. Raises KeysError."""
    keys = read_keys(file) if file.exists() else ()
    if any(key.name == name for key in keys):
        raise KeysError(f"there is a key {name!r} already; remove it first")
    secret = "sd_" + secrets.token_urlsafe(32)
    key = Key(
        name=name,
        sha256=_digest(secret),
        scopes=scopes,
        evaluations_per_minute=evaluations_per_minute,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    _write(file, (*keys, key))
    return secret


def remove_key(file: Path, name: str) -> None:
    """Take a key out of the file; a server that reads it refuses the key from then on. Raises KeysError."""
    keys = read_keys(file)
    left = tuple(key for key in keys if key.name != name)
    if len(left) == len(keys):
        raise KeysError(f"there is no key {name!r}")
    _write(file, left)


class Keyring:
    """The keys of a file, read again when the file changes."""

    def __init__(self, file: Path):
        """Read the file. Raises KeysError."""
        self._file = file
        self._keys, self._seen = read_keys(file), self._look()

    def find(self, secret: str) -> Key | None:
        """Return the key that this is, or None. How long it takes tells nothing about how much of it is right."""
        self._read_again()
        digest, found = _digest(secret), None
        for key in self._keys:
            if hmac.compare_digest(key.sha256, digest):
                found = key
        return found

    def _look(self) -> tuple[int, int, int] | None:
        try:
            status = self._file.stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size

    def _read_again(self) -> None:
        now = self._look()
        if now == self._seen:
            return
        self._seen = now
        if now is None:
            log.error("the file of keys is gone, so no key is valid")
            self._keys = ()
            return
        try:
            self._keys = read_keys(self._file)
            log.info("read %d keys again", len(self._keys))
        except KeysError as error:
            log.error("%s; the keys of before stay valid", error)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode(errors="surrogatepass")).hexdigest()


def _write(file: Path, keys: tuple[Key, ...]) -> None:
    """Write the file whole or not at all, for its owner's eyes."""
    temporary = file.with_name(f".{file.name}.partial")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as opened:
            opened.write(_File(keys=keys).model_dump_json(indent=1, exclude_none=True) + "\n")
        os.replace(temporary, file)
    except OSError:
        raise KeysError(f"the file of keys {file.name!r} cannot be written") from None
