"""Shakespeare by role: 80 characters in, the next one out.

References
----------
S. Caldas et al., "LEAF: A Benchmark for Federated Settings", arXiv:1812.01097, section 3;
``utils/language_utils.py`` of its repository for the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_shield.simulations.datasets.corpus import Corpus, Owner, Request, missing
from fl_shield.simulations.datasets.hub import fetch, read_partitioner
from fl_shield.simulations.datasets.leaf import LeafFiles, find_leaf, partner, read_leaf
from fl_shield.simulations.datasets.npz import find_npz, read_npz
from fl_shield.types import Ints, Samples

VOCABULARY = "\n !\"&'(),-.0123456789:;>?ABCDEFGHIJKLMNOPQRSTUVWXYZ[]abcdefghijklmnopqrstuvwxyz}"
"""LEAF's 80 characters; a token is the index in this string."""

LENGTH = 80
"""Characters of one input."""

_TOKENS = np.full(128, VOCABULARY.index(" "), dtype=np.int64)
_TOKENS[[ord(character) for character in VOCABULARY]] = np.arange(len(VOCABULARY))


def read_shakespeare(request: Request) -> Corpus:
    """Shakespeare by role: int64 tokens (n, 80), label = token of the next character.

    Parameters
    ----------
    request : Request
        ``data_dir``: an npz or LEAF ``*_train.json[.gz]`` file, a LEAF folder, or the folder that
        holds ``shakespeare/``. None: ``flwrlabs/shakespeare`` through flwr-datasets. The seed
        draws the roles.
    """
    rng = request.rng()
    if request.data_dir is None:
        owners = _fetch(request.n_owners, rng)
    else:
        owners = _read(request.data_dir, request.n_owners, rng)
    return text_corpus("shakespeare", owners)


def text_corpus(name: str, owners: tuple[Owner, ...]) -> Corpus:
    """Corpus of owners who write in LEAF's characters."""
    return Corpus(
        name=name, kind="text", n_classes=len(VOCABULARY), owners=owners, vocabulary=VOCABULARY
    )


def _read(data_dir: Path, n_owners: int, rng: np.random.Generator) -> tuple[Owner, ...]:
    if data_dir.suffix == ".npz":
        return read_npz(data_dir, windows, n_owners, rng)
    if data_dir.is_file():
        test = partner(data_dir)
        if test == data_dir or not test.is_file():
            raise missing("shakespeare", data_dir, "has no pair of *_train.json and *_test.json")
        return read_leaf(LeafFiles(train=(data_dir,), test=(test,)), windows, n_owners, rng)
    for folder in (data_dir / "shakespeare", data_dir):
        npz, leaf = find_npz(folder), find_leaf(folder)
        if npz is not None:
            return read_npz(npz, windows, n_owners, rng)
        if leaf is not None:
            return read_leaf(leaf, windows, n_owners, rng)
    raise missing("shakespeare", data_dir)


def _fetch(n_owners: int, rng: np.random.Generator) -> tuple[Owner, ...]:
    partitioner = fetch("shakespeare", partition_by="character_id")
    # rows stand in the order of the text and overlap by all but one character
    return read_partitioner(partitioner, decode_rows, n_owners, rng, train_share=0.8, gap=LENGTH)


def decode_rows(rows: Any) -> Samples:
    """Samples from rows of ``flwrlabs/shakespeare``: ``x`` 80 characters, ``y`` the next one.

    Parameters
    ----------
    rows : datasets.Dataset
        Rows of one role, in order of the text.
    """
    return windows(list(rows["x"]), list(rows["y"]))


def encode(text: str) -> Ints:
    """Tokens of a text, shape (len(text),); characters outside the vocabulary read as a space.

    Examples
    --------
    >>> encode("Ab").tolist(), encode("é ").tolist()
    ([25, 54], [1, 1])
    """
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    tokens: Ints = _TOKENS[np.minimum(points, len(_TOKENS) - 1)]
    return tokens


def windows(x: Sequence[str] | NDArray[Any], y: Sequence[str] | NDArray[Any]) -> Samples:
    """Samples from strings of 80 characters and the characters that follow them.

    Parameters
    ----------
    x : n strings of 80 characters, or (n, 80) int array of tokens
        Inputs.
    y : n strings of one character, or (n,) int array of tokens
        What follows; characters outside the vocabulary read as a space, as in the inputs.

    Examples
    --------
    >>> windows(["ab" * 40], ["a"]).x.shape
    (1, 80)
    """
    if isinstance(x, np.ndarray) and isinstance(y, np.ndarray) and x.dtype.kind in "ui":
        tokens, labels = x.astype(np.int64).reshape(-1, LENGTH), y.astype(np.int64)
        if min(tokens.min(), labels.min()) < 0 or max(tokens.max(), labels.max()) >= 80:
            raise ValueError(f"tokens must be in 0..{len(VOCABULARY) - 1}")
        return Samples(x=tokens, y=labels)
    for what, strings, length in (("x", x, LENGTH), ("y", y, 1)):
        wrong = next((s for s in strings if not isinstance(s, str) or len(s) != length), None)
        if wrong is not None:
            raise ValueError(f"{what} must be strings of {length} characters, got {wrong!r}")
    return Samples(x=encode("".join(x)).reshape(-1, LENGTH), y=encode("".join(y)))
