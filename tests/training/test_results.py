"""Result files that grow row by row."""

from multiprocessing import get_context
from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict

from training.datasets import DataError
from training.results import Extent, add_row, read_result


class Counted(BaseModel):
    """A record of whole numbers."""

    model_config = ConfigDict(frozen=True)

    samples: int = 1
    rows: tuple[int, ...] = ()

    @property
    def extent(self) -> Extent:
        return Extent(self.samples, 1, set())


def read(file: Path) -> Counted:
    return read_result(Counted, file, "counting")


def add(record: Counted, row: int, file: Path) -> Counted:
    return add_row(record, row, file, read, replaces=lambda row, known: row == known, order=lambda row: row)


def count(file: Path, rows: range) -> None:
    record = Counted()
    for row in rows:
        record = add(record, row, file)


def test_commands_side_by_side_lose_no_row_of_one_another(tmp_path: Path):
    file = tmp_path / "results" / "counted.json"
    processes = [get_context("spawn").Process(target=count, args=(file, range(first, 60, 2))) for first in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert read(file).rows == tuple(range(60))


def test_a_row_stands_for_the_one_it_replaces_and_none_is_added_to_a_result_of_more(tmp_path: Path):
    file = tmp_path / "counted.json"
    assert add(add(Counted(), 2, file), 1, file).rows == (1, 2)
    assert add(Counted(), 2, file).rows == (1, 2)
    file.write_text(Counted(samples=9, rows=(5,)).model_dump_json())
    with pytest.raises(DataError, match="of 9 images"):
        add(Counted(), 3, file)
    assert read(file).rows == (5,)
