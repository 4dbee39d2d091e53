"""AG News: descriptions of articles about the world, sports, business and science.

References
----------
X. Zhang, J. Zhao, Y. LeCun, "Character-level Convolutional Networks for Text Classification",
NeurIPS 2015, section 4.
"""

from __future__ import annotations

from pathlib import Path

from fl_shield.simulations.datasets.corpus import Corpus, Request, common_pool
from fl_shield.simulations.datasets.hub_splits import fetch_split, fetched_texts
from fl_shield.simulations.datasets.parts import Parts, PartsRequest, unavailable
from fl_shield.simulations.datasets.tables import Labelled, find_pair, read_table, whole_labels
from fl_shield.simulations.datasets.words import word_parts

LENGTH = 32
"""Words of one input."""

N_CLASSES = 4

REPOSITORY = "fancyzhx/ag_news"

WAYS = (
    "point --data-dir at the folder that holds ag_news/train.csv.gz and test.csv.gz, or leave it "
    f"out on a machine with a network to fetch {REPOSITORY} through flwr-datasets"
)


def read_ag_news(request: Request) -> Corpus:
    """AG News as one pool of int64 ids (n, 32) of words, padded left, 4 classes.

    Parameters
    ----------
    request : Request
        As in :func:`ag_news_parts`.
    """
    return common_pool("ag-news", "text", ag_news_parts(request.parts))


def ag_news_parts(request: PartsRequest) -> Parts:
    """Train and test of AG News: ids (n, 32) of the first words of a description, padded left.

    Parameters
    ----------
    request : PartsRequest
        ``data_dir``: the folder that holds ``ag_news/`` with ``train.csv[.gz]`` and
        ``test.csv[.gz]`` (class 1-4, title, description), or that folder itself. The title is
        not read. None: ``fancyzhx/ag_news`` through flwr-datasets, whose texts begin with it.
    """
    where = request.data_dir
    if where is None:
        splits = (fetch_split("ag-news", REPOSITORY, s, WAYS) for s in ("train", "test"))
        parts = [fetched_texts(rows) for rows in splits]
    else:
        pair = find_pair(where, "ag_news", "train.csv", "test.csv")
        if pair is None:
            raise unavailable("ag-news", where, WAYS)
        parts = [_read_news(path) for path in pair]
    return word_parts(request, parts, LENGTH, N_CLASSES)


def _read_news(path: Path) -> Labelled:
    rows = read_table(path, delimiter=",", n_columns=3)
    return [row[2] for row in rows], whole_labels(path, [row[0] for row in rows], first=1)
