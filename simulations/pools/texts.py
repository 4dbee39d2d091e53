"""Pools of text: AG News and SST-2 by words, Shakespeare and generated roles by characters."""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from fl_shield.errors import DatasetError
from fl_shield.simulations.datasets.corpus import Corpus, Request
from fl_shield.simulations.datasets.roles import read_roles
from fl_shield.simulations.datasets.shakespeare import read_shakespeare
from fl_shield.simulations.pools.hub import fetch_split, fetched_texts
from fl_shield.simulations.pools.pool import EVERYONE, Pool, PoolRequest, draw_parts, missing
from fl_shield.simulations.pools.words import encode_words, make_vocabulary, split_words
from fl_shield.types import Ints, Samples

AG_NEWS_LENGTH = 32
SST2_LENGTH = 24
N_ROLES = 100
"""Roles of generated speech."""

Labelled = tuple[list[str], Ints]
"""Texts and their labels, (n,) int64."""


def ag_news_pool(request: PoolRequest) -> Pool:
    """AG News: ids (n, 32) of the first words of a description, padded left, in 4 classes.

    Parameters
    ----------
    request : PoolRequest
        ``data_dir``: the folder that holds ``ag_news/`` with ``train.csv[.gz]`` and
        ``test.csv[.gz]`` (class 1-4, title, description), or that folder itself. The title is
        not read. None: ``fancyzhx/ag_news`` through flwr-datasets, whose texts begin with it.

    References
    ----------
    X. Zhang, J. Zhao, Y. LeCun, "Character-level Convolutional Networks for Text
    Classification", NeurIPS 2015, section 4.
    """
    name, repository = "ag-news", "fancyzhx/ag_news"
    ways = _ways("ag_news/train.csv.gz and test.csv.gz", repository)
    if request.data_dir is None:
        parts = [fetched_texts(fetch_split(name, repository, s, ways)) for s in ("train", "test")]
    else:
        train, test = _find_pair(name, request.data_dir, "ag_news", "train.csv", "test.csv", ways)
        parts = [_read_news(train), _read_news(test)]
    return _word_pool(request, name, parts, AG_NEWS_LENGTH, n_classes=4)


def sst2_pool(request: PoolRequest) -> Pool:
    """SST-2: ids (n, 24) of the first words of a sentence, padded left, 1 = positive.

    Parameters
    ----------
    request : PoolRequest
        ``data_dir``: the folder that holds ``sst2/`` with ``sentences_train.tsv[.gz]`` and
        ``sentences_test.tsv[.gz]`` (a header, then sentence and label), or that folder itself:
        whole sentences, as phrases of one sentence would lie on both sides. None:
        ``stanfordnlp/sst2`` through flwr-datasets, phrases, with its validation part as test.

    References
    ----------
    R. Socher et al., "Recursive Deep Models for Semantic Compositionality Over a Sentiment
    Treebank", EMNLP 2013, section 3.
    """
    name, repository = "sst2", "stanfordnlp/sst2"
    files = ("sentences_train.tsv", "sentences_test.tsv")
    ways = _ways("sst2/sentences_train.tsv.gz and sentences_test.tsv.gz", repository)
    if request.data_dir is None:
        splits = ("train", "validation")
        parts = [fetched_texts(fetch_split(name, repository, s, ways)) for s in splits]
    else:
        train, test = _find_pair(name, request.data_dir, "sst2", *files, ways)
        parts = [_read_sentences(train), _read_sentences(test)]
    return _word_pool(request, name, parts, SST2_LENGTH, n_classes=2)


def _ways(files: str, repository: str) -> str:
    return (
        f"point data_dir at the folder that holds {files}, or leave it out on a machine with a "
        f"network to fetch {repository} through flwr-datasets"
    )


def _find_pair(
    name: str, data_dir: Path, folder: str, train: str, test: str, ways: str
) -> tuple[Path, Path]:
    for base in (data_dir / folder, data_dir):
        for suffix in ("", ".gz"):
            pair = base / (train + suffix), base / (test + suffix)
            if all(path.is_file() for path in pair):
                return pair
    raise missing(name, data_dir, ways)


def _word_pool(
    request: PoolRequest, name: str, parts: Sequence[Labelled], length: int, n_classes: int
) -> Pool:
    """Pool of labelled texts; the vocabulary is the whole train part's, whatever is drawn."""
    split = [([split_words(text) for text in texts], labels) for texts, labels in parts]
    words = make_vocabulary(split[0][0])
    samples = []
    for texts, labels in split:
        some = np.array([len(text) > 0 for text in texts], dtype=np.bool_)
        x = encode_words(texts, words, length)
        samples.append(Samples(x=x[some], y=labels[some]))
    train, test = draw_parts(request, *samples)
    return Pool(
        name=name,
        domain="nlp",
        kind="text",
        train=train,
        test=test,
        n_classes=n_classes,
        n_tokens=len(words),
        words=words,
    )


def _read_news(path: Path) -> Labelled:
    rows = read_table(path, delimiter=",", n_columns=3)
    return [row[2] for row in rows], _labels(path, [row[0] for row in rows], first=1)


def _read_sentences(path: Path) -> Labelled:
    rows = read_table(path, delimiter="\t", n_columns=2)[1:]
    return [row[0] for row in rows], _labels(path, [row[1] for row in rows], first=0)


def _labels(path: Path, labels: Sequence[str], first: int) -> Ints:
    wrong = next((label for label in labels if not label.strip().isdecimal()), None)
    if wrong is not None:
        raise DatasetError(f"labels in {path} must be whole numbers, got {wrong!r}: copy it again")
    return np.array([int(label) - first for label in labels], dtype=np.int64)


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


def shakespeare_pool(request: PoolRequest) -> Pool:
    """Shakespeare: ids (n, 80) of LEAF's 80 characters, label = the next character.

    Of all roles; the first part of each role's text is train, the last test; see
    :mod:`fl_shield.simulations.datasets.shakespeare` for files and the fetch.
    """
    return _characters(request, read_shakespeare, n_owners=EVERYONE)


def roles_pool(request: PoolRequest) -> Pool:
    """Generated speech of 100 roles: ids (n, 80) of LEAF's characters, label = the next one."""
    return _characters(request, read_roles, n_owners=N_ROLES)


def _characters(request: PoolRequest, read: Callable[[Request], Corpus], n_owners: int) -> Pool:
    corpus = read(Request(n_owners=n_owners, seed=request.seed, data_dir=request.data_dir))
    train, test = draw_parts(
        request,
        Samples.join([owner.train for owner in corpus.owners]),
        Samples.join([owner.test for owner in corpus.owners]),
    )
    return Pool(
        name=corpus.name,
        domain="nlp",
        kind="text",
        train=train,
        test=test,
        n_classes=corpus.n_classes,
        n_tokens=len(corpus.vocabulary),
        words=tuple(corpus.vocabulary),
    )
