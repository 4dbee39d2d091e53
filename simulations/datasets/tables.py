"""Tables of labelled texts, plain or gzipped."""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fl_shield.errors import DatasetError
from fl_shield.types import Ints

Labelled = tuple[list[str], Ints]
"""Texts and their labels, (n,) int64."""


def find_pair(data_dir: Path, folder: str, train: str, test: str) -> tuple[Path, Path] | None:
    """Two files of a data set in ``data_dir/folder`` or ``data_dir``, also gzipped, or None.

    Parameters
    ----------
    data_dir : Path
        The folder of all data sets, or of one.
    folder : str
        The data set's own folder.
    train, test : str
        Names without ``.gz``.
    """
    for base in (data_dir / folder, data_dir):
        for suffix in ("", ".gz"):
            pair = base / (train + suffix), base / (test + suffix)
            if all(path.is_file() for path in pair):
                return pair
    return None


def read_table(path: Path, *, delimiter: str, n_columns: int) -> list[list[str]]:
    """Rows of a table, plain or gzipped, in UTF-8.

    Parameters
    ----------
    path : Path
        ``*.csv`` with quotes or ``*.tsv`` without, also ``.gz``.
    delimiter : str
        A comma, or a tabulator: quotes in a tsv file are letters like others.
    n_columns : int
        Columns of every row.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8", newline="") as stream:
            if delimiter == "\t":
                rows = list(csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))
            else:
                rows = list(csv.reader(stream, delimiter=delimiter))
    except (OSError, EOFError, zlib.error, ValueError, csv.Error) as error:
        raise DatasetError(f"{path} cannot be read as a table ({error}): copy it again") from error
    for number, row in enumerate(rows, start=1):
        if len(row) != n_columns:
            raise DatasetError(
                f"row {number} of {path} has {len(row)} columns and must have {n_columns}: copy it "
                "again"
            )
    return rows


def whole_labels(path: Path, labels: Sequence[str], first: int) -> Ints:
    """Labels (n,) counted from 0, of a column whose smallest label is ``first``.

    Examples
    --------
    >>> whole_labels(Path("news.csv"), ["1", "3"], first=1).tolist()
    [0, 2]
    """
    wrong = next((label for label in labels if not label.strip().isdecimal()), None)
    if wrong is not None:
        raise DatasetError(f"labels in {path} must be whole numbers, got {wrong!r}: copy it again")
    return np.array([int(label) - first for label in labels], dtype=np.int64)
