"""`stepdial report`: what was measured as tables in a Markdown file, so that no number is ever typed."""

import re
from pathlib import Path

from diffusion.family import Family
from training.datasets import DataError
from training.frontier_tables import dial_table, rescues_table, searched_table, training_table
from training.paper import paper_table
from training.result_tables import ablations_table, metrics_table, samplers_table

TABLES = {
    "dial": dial_table,
    "searched": searched_table,
    "rescues": rescues_table,
    "ablations": ablations_table,
    "samplers": samplers_table,
    "metrics": metrics_table,
    "paper": paper_table,
    "training": training_table,
}
"""What may stand between markers `<!-- KIND NAME -->` and `<!-- end -->`, by kind."""


def write_report(family: Family, file: Path) -> None:
    """Replace what stands between the file's markers of this family, `<!-- KIND NAME -->` and `<!-- end -->`, by its tables.

    Raises DataError if the file cannot be read or has no markers, or the family has no frontier for its dial.
    """
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise DataError(f"--file {file.name} cannot be read: {why}") from None
    names = "|".join(TABLES)
    pattern = re.compile(rf"(<!-- ({names}) {re.escape(family.name)} -->\n).*?(<!-- end -->)", re.DOTALL)
    if not pattern.search(text):
        raise DataError(f"{file.name} has no markers <!-- KIND {family.name} --> (KIND: {names}) and <!-- end -->")
    file.write_text(pattern.sub(lambda found: found[1] + TABLES[found[2]](family) + found[3], text))
