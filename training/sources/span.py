"""A stretch of a file: an image in an archive, a row of an array."""

from os import PathLike


def span(file: str | PathLike[str], offset: int, size: int) -> bytes:
    """Return `size` bytes from `offset`, fewer where the file ends before.  Nothing stays open, so processes may fork."""
    with open(file, "rb", buffering=0) as opened:
        opened.seek(offset)
        return opened.read(size)
