"""Tables that commands write into Markdown files, between the marks <!-- NAME --> and <!-- end -->: no number is typed."""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table, its first column to the left and the others to the right."""
    head = list(head)
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def fill(file: Path, tables: Mapping[str, Callable[[], str]]) -> None:
    """Replace what stands between a file's marks of these names by the tables, which end with a line break.

    Only tables whose marks are there are made.  Raises ValueError where none are, OSError.
    """
    text = file.read_text()
    marked = re.compile(rf"(<!-- ({'|'.join(map(re.escape, tables))}) -->\n).*?(<!-- end -->)", re.DOTALL)
    if not marked.search(text):
        raise ValueError(f"{file.name} has no marks <!-- NAME --> and <!-- end -->, NAME one of {', '.join(tables)}")
    file.write_text(marked.sub(lambda found: found[1] + tables[found[2]]() + found[3], text))
