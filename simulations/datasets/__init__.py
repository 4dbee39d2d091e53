"""Federated data sets: by writer or role, embedded ones, generated stand-ins, and common pools.

Those of a common pool (digits, photographs, news, states of a control task) have no owners: their
clients get shares of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from fl_shield.errors import DatasetError
from fl_shield.simulations.datasets.ag_news import read_ag_news
from fl_shield.simulations.datasets.assembly import Split, federate
from fl_shield.simulations.datasets.cartpole import read_cartpole
from fl_shield.simulations.datasets.cifar10 import read_cifar10
from fl_shield.simulations.datasets.corpus import Corpus, Request
from fl_shield.simulations.datasets.digits import read_digits
from fl_shield.simulations.datasets.federated_data import FederatedData, fingerprint
from fl_shield.simulations.datasets.femnist import read_femnist
from fl_shield.simulations.datasets.glyphs import read_glyphs
from fl_shield.simulations.datasets.gtsrb import read_gtsrb
from fl_shield.simulations.datasets.roles import read_roles
from fl_shield.simulations.datasets.shakespeare import read_shakespeare
from fl_shield.simulations.datasets.tiny_imagenet import read_tiny_imagenet

__all__ = [
    "DATASETS",
    "DEFAULT_CLIENTS",
    "EXAMPLES_PER_CLIENT",
    "FederatedData",
    "fingerprint",
    "load",
]

DATASETS: Mapping[str, Callable[[Request], Corpus]] = {
    "digits": read_digits,
    "glyphs": read_glyphs,
    "femnist": read_femnist,
    "shakespeare": read_shakespeare,
    "roles": read_roles,
    "cifar10": read_cifar10,
    "gtsrb": read_gtsrb,
    "tiny-imagenet": read_tiny_imagenet,
    "ag-news": read_ag_news,
    "cartpole": read_cartpole,
}
"""Every data set by name."""

DEFAULT_CLIENTS: Mapping[str, int] = {
    "digits": 20,
    "glyphs": 100,
    "femnist": 100,
    "shakespeare": 100,
    "roles": 100,
    "cifar10": 20,
    "gtsrb": 20,
    "tiny-imagenet": 20,
    "ag-news": 20,
    "cartpole": 20,
}
"""Clients of each data set where their number is not given (or as many as it has owners)."""

EXAMPLES_PER_CLIENT: Mapping[str, int] = {
    "cifar10": 1000,
    "gtsrb": 400,
    "tiny-imagenet": 300,
    "ag-news": 500,
    "cartpole": 400,
}
"""Mean number of a client's training examples where it is not given: rounds of seconds on one
core. Data sets that are not here are shared out whole."""


def load(
    name: str,
    *,
    n_clients: int | None = None,
    partition: str | None = None,
    alpha: float = 0.5,
    data_dir: str | Path | None = None,
    n_clean: int = 20,
    n_test: int = 2000,
    max_per_client: int | None = None,
    examples_per_client: int | None = None,
    seed: int = 0,
) -> FederatedData:
    """Load a data set as a federation: same arguments and files, same arrays.

    Parameters
    ----------
    name : str
        A key of :data:`DATASETS`.
    n_clients : int, optional
        Clients; None = :data:`DEFAULT_CLIENTS`.
    partition : str, optional
        ``natural`` (by writer or role), ``dirichlet`` or ``iid``; None = natural where the data
        set has owners, else dirichlet.
    alpha : float
        Concentration of the Dirichlet partition.
    data_dir : path, optional
        Where the user's files are. Needed by femnist, shakespeare, cifar10 and ag-news where there
        is no network, and by gtsrb; ignored by data sets that are embedded, generated or played.
    n_clean : int
        Clean examples that the server holds.
    n_test : int
        Most test examples.
    max_per_client : int, optional
        Most training examples of one client.
    examples_per_client : int, optional
        Training examples of a client on average, of a data set without owners (fewer where it has
        not so many): who has more and who less, the partition decides. None =
        :data:`EXAMPLES_PER_CLIENT`, or all.
    seed : int
        Seed of every draw.

    Raises
    ------
    DatasetError
        For an unknown name, a data set that is not there, unreadable or too small.

    Examples
    --------
    >>> data = load("digits", n_clients=10, seed=1)
    >>> len(data.clients), len(data.clean), data.input_shape
    (10, 20, (1, 8, 8))
    """
    if name not in DATASETS:
        raise DatasetError(f"data set must be one of {', '.join(DATASETS)}, got {name!r}")
    if data_dir is not None and not Path(data_dir).exists():
        raise DatasetError(f"data folder {str(data_dir)!r} does not exist: check --data-dir")
    wanted = DEFAULT_CLIENTS[name] if n_clients is None else n_clients
    each = EXAMPLES_PER_CLIENT.get(name) if examples_per_client is None else examples_per_client
    if each is not None and each < 1:
        raise DatasetError(f"examples_per_client must be >= 1, got {each}")
    split = Split(
        n_clients=wanted,
        partition=partition or "natural",
        alpha=alpha,
        n_clean=n_clean,
        n_test=n_test,
        max_per_client=max_per_client,
        seed=seed,
    )
    request = Request(
        n_owners=wanted + max(10, wanted // 4),
        seed=seed,
        data_dir=None if data_dir is None else Path(data_dir),
        n_train=None if each is None else wanted * each + n_clean,
        n_test=n_test,
    )
    corpus = DATASETS[name](request)
    if n_clients is None and corpus.natural:
        wanted = max(1, min(wanted, len(corpus.owners)))
    usual = "natural" if corpus.natural else "dirichlet"
    return federate(corpus, replace(split, n_clients=wanted, partition=partition or usual))
