"""Download the archive of families that ARCHIVE_URL names into the folder given, if its SHA-256 is ARCHIVE_SHA256.

A .tar, .tar.gz or .tar.xz with a folder for each family. Needs Python's standard library only.
"""

import hashlib
import os
import sys
import tarfile
import tempfile
import urllib.request
import zlib
from pathlib import Path

BROKEN = (OSError, ValueError, EOFError, tarfile.TarError, zlib.error)
"""What reading an address and an archive may raise."""
TIMEOUT_SECONDS = 60
"""Longest that the server of the archive may be silent."""


def fetch(url: str, sha256: str, folder: Path) -> int:
    """Unpack the archive into a folder and return how many families it held. Raises one of BROKEN."""
    digest = hashlib.sha256()
    with tempfile.TemporaryFile(dir=folder) as archive:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as answer:
            while chunk := answer.read(2**20):
                digest.update(chunk)
                archive.write(chunk)
        if digest.hexdigest() != sha256.lower():
            raise ValueError(f"the archive's SHA-256 is {digest.hexdigest()}, not {sha256}: nothing was unpacked")
        archive.seek(0)
        with tarfile.open(fileobj=archive) as opened:
            opened.extractall(folder, filter="data")  # no links or paths that lead out of the folder, no devices
    families = len(list(folder.glob("*/family.json")))
    if not families:
        raise ValueError("the archive holds no family: there is no */family.json in it")
    return families


if __name__ == "__main__":
    try:
        count = fetch(os.environ["ARCHIVE_URL"], os.environ["ARCHIVE_SHA256"], Path(sys.argv[1]))
    except BROKEN as error:
        sys.exit(f"families were not fetched: {error}")
    print(f"fetched {count} families; SHA-256 is right")
