"""Pools of text: AG News and SST-2 by words, Shakespeare and generated roles by characters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fl_shield.simulations.datasets.ag_news import ag_news_parts
from fl_shield.simulations.datasets.corpus import Corpus, Request
from fl_shield.simulations.datasets.hub_splits import fetch_split, fetched_texts
from fl_shield.simulations.datasets.parts import Parts, PartsRequest, draw_parts, unavailable
from fl_shield.simulations.datasets.roles import read_roles
from fl_shield.simulations.datasets.shakespeare import read_shakespeare
from fl_shield.simulations.datasets.tables import Labelled, find_pair, read_table, whole_labels
from fl_shield.simulations.datasets.words import word_parts
from fl_shield.simulations.pools.pool import EVERYONE, Pool
from fl_shield.types import Samples

SST2_LENGTH = 24
SST2_FILES = ("sentences_train.tsv", "sentences_test.tsv")
SST2_REPOSITORY = "stanfordnlp/sst2"
SST2_SPLITS = ("train", "validation")
SST2_WAYS = (
    "point --data-dir at the folder that holds sst2/sentences_train.tsv.gz and "
    "sentences_test.tsv.gz, or leave it out on a machine with a network to fetch "
    f"{SST2_REPOSITORY} through flwr-datasets"
)
N_ROLES = 100
"""Roles of generated speech."""


def ag_news_pool(request: PartsRequest) -> Pool:
    """AG News: ids (n, 32) of words in 4 classes; see :func:`.ag_news.ag_news_parts`."""
    return _texts("ag-news", ag_news_parts(request))


def sst2_pool(request: PartsRequest) -> Pool:
    """SST-2: ids (n, 24) of the first words of a sentence, padded left, 1 = positive.

    Parameters
    ----------
    request : PartsRequest
        ``data_dir``: the folder that holds ``sst2/`` with ``sentences_train.tsv[.gz]`` and
        ``sentences_test.tsv[.gz]`` (a header, then sentence and label), or that folder itself:
        whole sentences, as phrases of one sentence would lie on both sides. None:
        ``stanfordnlp/sst2`` through flwr-datasets, phrases, with its validation part as test.

    References
    ----------
    R. Socher et al., "Recursive Deep Models for Semantic Compositionality Over a Sentiment
    Treebank", EMNLP 2013, section 3.
    """
    where = request.data_dir
    if where is None:
        splits = (fetch_split("sst2", SST2_REPOSITORY, s, SST2_WAYS) for s in SST2_SPLITS)
        parts = [fetched_texts(rows) for rows in splits]
    else:
        pair = find_pair(where, "sst2", *SST2_FILES)
        if pair is None:
            raise unavailable("sst2", where, SST2_WAYS)
        parts = [_read_sentences(path) for path in pair]
    return _texts("sst2", word_parts(request, parts, SST2_LENGTH, n_classes=2))


def _read_sentences(path: Path) -> Labelled:
    rows = read_table(path, delimiter="\t", n_columns=2)[1:]
    return [row[0] for row in rows], whole_labels(path, [row[1] for row in rows], first=0)


def shakespeare_pool(request: PartsRequest) -> Pool:
    """Shakespeare: ids (n, 80) of LEAF's 80 characters, label = the next character.

    Of all roles; the first part of each role's text is train, the last test; see
    :mod:`fl_shield.simulations.datasets.shakespeare` for files and the fetch.
    """
    return _characters(request, read_shakespeare, n_owners=EVERYONE)


def roles_pool(request: PartsRequest) -> Pool:
    """Generated speech of 100 roles: ids (n, 80) of LEAF's characters, label = the next one."""
    return _characters(request, read_roles, n_owners=N_ROLES)


def _characters(request: PartsRequest, read: Callable[[Request], Corpus], n_owners: int) -> Pool:
    corpus = read(Request(n_owners=n_owners, seed=request.seed, data_dir=request.data_dir))
    train, test = draw_parts(
        request,
        Samples.join([owner.train for owner in corpus.owners]),
        Samples.join([owner.test for owner in corpus.owners]),
    )
    parts = Parts(
        train=train, test=test, n_classes=corpus.n_classes, words=tuple(corpus.vocabulary)
    )
    return _texts(corpus.name, parts)


def _texts(name: str, parts: Parts) -> Pool:
    return Pool(
        name=name,
        domain="nlp",
        kind="text",
        train=parts.train,
        test=parts.test,
        n_classes=parts.n_classes,
        n_tokens=len(parts.words),
        words=parts.words,
    )
