"""Likeness to updates in doubt: attackers of one backdoor resemble one another.

An honest client with unusual data is unusual in its own way. Clients that train the same backdoor
push the same class under the same stamps, in one round and in the next; so an update that points
where doubted updates of *other* clients point, now or in earlier rounds, is more suspicious than
one that is merely far away. A client is never compared with its own past, and each client is
remembered once: whoever wants to shift this memory needs many identities.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fl_shield.types import Floats

N_SUSPECTS = 48
"""Clients whose latest doubted update is remembered; the longest unseen is forgotten first."""

N_COMPANIONS = 256
"""Updates in doubt that the others of a round are compared with, the most doubted: so that cost
grows with clients, not with their square.
"""

PRIOR = 1.0
"""Doubt that counts as seen without any likeness: one doubted update alone proves little."""

FIRST_DOUBT = 0.2
"""Largest p-value at first sight that puts an update in doubt for the others of its round."""

TOLERANCE = 1.0
"""Standard deviations above the references that a likeness may lie without effect."""

SLOPE = 3.0
"""Log-odds for each standard deviation beyond."""

MOST = 4.0
"""Log-odds that a likeness adds at most: alone it condemns nobody who looks honest otherwise."""

FLOOR = 0.02
"""Added to the references' spread of cosines, so that equal references cannot accuse."""


@dataclass(frozen=True, kw_only=True)
class _Suspect:
    directions: Mapping[str, Floats]
    doubt: float


class Suspects:
    """Directions of the latest doubted update of each client, by view.

    Examples
    --------
    >>> suspects = Suspects()
    >>> suspects.add(["mallory"], {"update:fc": np.array([[2.0, 0.0]])}, [1.0])
    >>> points = {"update:fc": np.array([[5.0, 0.0], [0.0, 1.0], [1.0, 0.0]])}
    >>> suspects.likeness(points, ["eve", "bob", "mallory"])["update:fc"].tolist()
    [0.5, 0.0, 0.0]
    """

    def __init__(self) -> None:
        self._by_client: dict[str, _Suspect] = {}

    def __len__(self) -> int:
        """Clients remembered."""
        return len(self._by_client)

    def known(self) -> Iterator[tuple[str, float, Mapping[str, Floats]]]:
        """Every client that is remembered, its doubt and its directions; longest unseen first."""
        for name, suspect in self._by_client.items():
            yield name, suspect.doubt, suspect.directions

    def restore(self, client: str, doubt: float, directions: Mapping[str, Floats]) -> None:
        """Remember a client as :meth:`known` told of it."""
        self._by_client[client] = _Suspect(directions=dict(directions), doubt=doubt)

    def add(
        self, clients: Sequence[str], points: Mapping[str, Floats], doubts: Sequence[float]
    ) -> None:
        """Remember the doubted updates of a round.

        Parameters
        ----------
        clients : sequence of str
            Who sent each of the n updates; what nobody sent is not remembered.
        points : mapping of view name to (n, d) float array
            Updates relative to their round's centre.
        doubts : sequence of float
            In [0, 1]; an update without doubt leaves what is known of its client as it is.
        """
        self._put(clients, points, doubts)
        for client in list(self._by_client)[: max(len(self) - N_SUSPECTS, 0)]:
            del self._by_client[client]

    def _put(
        self, clients: Sequence[str], points: Mapping[str, Floats], doubts: Sequence[float]
    ) -> None:
        for i, (client, doubt) in enumerate(zip(clients, doubts, strict=True)):
            if doubt <= 0 or not client:
                continue
            self._by_client.pop(client, None)
            directions = {name: _directions(rows[i : i + 1])[0] for name, rows in points.items()}
            self._by_client[client] = _Suspect(directions=directions, doubt=float(doubt))

    def joined_by(
        self, clients: Sequence[str], points: Mapping[str, Floats], doubts: Sequence[float]
    ) -> Suspects:
        """Return all these suspects and the most doubted of one more round, see :meth:`add`.

        At most :data:`N_COMPANIONS` of the round are taken, the first ones of equal doubt.
        """
        both = Suspects()
        both._by_client = dict(self._by_client)
        by_doubt = sorted(range(len(doubts)), key=lambda i: -doubts[i])
        most = sorted(by_doubt[:N_COMPANIONS])
        chosen = np.array(most, dtype=np.intp)
        both._put(
            [clients[i] for i in most],
            {name: rows[chosen] for name, rows in points.items()},
            [doubts[i] for i in most],
        )
        return both

    def likeness(self, points: Mapping[str, Floats], clients: Sequence[str]) -> dict[str, Floats]:
        """Mean cosine with the doubted updates of other clients, weighted by doubt.

        Parameters
        ----------
        points : mapping of view name to (n, d) float array
        clients : sequence of str
            Who sent each; an empty name stands for nobody and excludes nobody.

        Returns
        -------
        mapping of view name to (n,) float array
            In (-1, 1), 0 where there are no suspects; :data:`PRIOR` draws it towards 0 where
            there are few.
        """
        names = list(self._by_client)
        doubts = np.array([self._by_client[name].doubt for name in names])
        others = np.array([[own != name for name in names] for own in clients])
        weights = (others.reshape(len(clients), len(names)) * doubts).astype(np.float64)
        total = weights.sum(1) + PRIOR
        return {
            view: (weights * self._cosines(view, rows)).sum(1) / total
            for view, rows in points.items()
        }

    def _cosines(self, view: str, rows: Floats) -> Floats:
        """Cosines of points (n, d) with every suspect (n, s); 0 where one lacks the view."""
        nothing = np.zeros(rows.shape[1])
        known = [s.directions.get(view, nothing) for s in self._by_client.values()]
        stacked = np.stack(known) if known else np.zeros((0, rows.shape[1]))
        cosines: Floats = _directions(rows) @ stacked.T
        return cosines


def kinship_evidence(own: Mapping[str, Floats], references: Mapping[str, Floats]) -> Floats:
    """Log-odds that the likeness to suspects adds to each update's, never negative.

    A likeness counts by how far its mean over the views lies above the references' own: what
    honest updates share with the doubted ones is no evidence. Unlikeness clears nobody, for the
    first update of a new attack resembles no one.

    Parameters
    ----------
    own : mapping of view name to (n,) float array
        Likeness of the updates to be judged, see :meth:`Suspects.likeness`.
    references : mapping of view name to (m,) float array
        Likeness of the references.

    Returns
    -------
    (n,) float array

    Examples
    --------
    >>> calm = {"update:fc": np.array([-0.1, 0.0, 0.1])}
    >>> kinship_evidence({"update:fc": np.array([-0.9, 0.0, 0.9])}, calm).round(1).tolist()
    [0.0, 0.0, 4.0]
    """
    mean_own = np.mean([own[view] for view in own], axis=0)
    mean_references = np.mean([references[view] for view in own], axis=0)
    spread = float(mean_references.std()) + FLOOR
    beyond: Floats = (mean_own - mean_references.mean()) / spread - TOLERANCE
    return (SLOPE * beyond).clip(0, MOST)


def first_doubts(p_values: Floats) -> Floats:
    """Doubt in [0, 1] that p-values (n,) at first sight leave: none from :data:`FIRST_DOUBT` on.

    Examples
    --------
    >>> first_doubts(np.array([0.0, 0.05, 0.2, 0.9])).tolist()
    [1.0, 0.75, 0.0, 0.0]
    """
    doubts: Floats = (1 - p_values / FIRST_DOUBT).clip(0, 1)
    return doubts


def _directions(rows: Floats) -> Floats:
    """Unit vectors of points (n, d); a zero stays zero."""
    units: Floats = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return units
