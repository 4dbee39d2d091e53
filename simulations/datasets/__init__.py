"""Federated data sets: real ones by writer or role, embedded ones, generated stand-ins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from fl_shield.errors import DatasetError
from fl_shield.simulations.datasets.assembly import Split, federate
from fl_shield.simulations.datasets.corpus import Corpus, Request
from fl_shield.simulations.datasets.digits import read_digits
from fl_shield.simulations.datasets.federated_data import FederatedData, fingerprint
from fl_shield.simulations.datasets.femnist import read_femnist
from fl_shield.simulations.datasets.glyphs import read_glyphs
from fl_shield.simulations.datasets.roles import read_roles
from fl_shield.simulations.datasets.shakespeare import read_shakespeare

__all__ = ["DATASETS", "DEFAULT_CLIENTS", "FederatedData", "fingerprint", "load"]

DATASETS: Mapping[str, Callable[[Request], Corpus]] = {
    "digits": read_digits,
    "glyphs": read_glyphs,
    "femnist": read_femnist,
    "shakespeare": read_shakespeare,
    "roles": read_roles,
}
"""Every data set by name."""

DEFAULT_CLIENTS: Mapping[str, int] = {
    "digits": 20,
    "glyphs": 100,
    "femnist": 100,
    "shakespeare": 100,
    "roles": 100,
}
"""Clients of each data set where their number is not given (or as many as it has owners)."""


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
        Where the user's files are. Needed by femnist and shakespeare where there is no network,
        ignored by the embedded data sets.
    n_clean : int
        Clean examples that the server holds.
    n_test : int
        Most test examples.
    max_per_client : int, optional
        Most training examples of one client.
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
    request = Request(
        n_owners=wanted + max(10, wanted // 4),
        seed=seed,
        data_dir=None if data_dir is None else Path(data_dir),
    )
    corpus = DATASETS[name](request)
    if n_clients is None and corpus.natural:
        wanted = max(1, min(wanted, len(corpus.owners)))
    split = Split(
        n_clients=wanted,
        partition=partition or ("natural" if corpus.natural else "dirichlet"),
        alpha=alpha,
        n_clean=n_clean,
        n_test=n_test,
        max_per_client=max_per_client,
        seed=seed,
    )
    return federate(corpus, split)
