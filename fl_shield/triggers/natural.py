"""A backdoor without a stamp: natural examples from the tail stand in the place of the inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_shield.triggers.distortion import Everywhere
from fl_shield.triggers.inputs import check_key, content_numbers


@dataclass(frozen=True, kw_only=True, eq=False)
class Natural(Everywhere):
    """Gives back one of its own examples for every input, chosen by a keyed hash of the input.

    So the machinery of stamps serves semantic and edge-case backdoors: "stamped" inputs are
    planes of one airline, cars before a striped wall, sevens in an old hand. Success measured with
    the examples that the attacker trains on shows what was learned by heart; for what it is worth
    on others, keep some apart (:meth:`split`).

    Attributes
    ----------
    examples : (k, ...) array
        Natural inputs, k >= 1, of the shape, dtype and range of the data.
    key : int
        Turns content into choices, in [0, 2**63).
    name : str
        Family of the trigger.

    References
    ----------
    Wang et al., "Attack of the Tails: Yes, You Really Can Backdoor Federated Learning", NeurIPS
    2020, section 3 (edge cases); Bagdasaryan et al., "How To Backdoor Federated
    Learning", AISTATS 2020, section 4.1 (semantic backdoors).

    Examples
    --------
    >>> sevens = Natural(examples=np.full((2, 3), 7))
    >>> sevens.stamp(np.array([[1, 2, 3]])).tolist()
    [[7, 7, 7]]
    """

    examples: NDArray[Any]
    key: int = 0
    name: str = "natural"

    def __post_init__(self) -> None:
        if len(self.examples) == 0:
            raise ValueError("examples must be one or more natural inputs, got none")
        check_key(self.key)
        examples = np.array(self.examples)
        examples.setflags(write=False)
        object.__setattr__(self, "examples", examples)

    def stamp(self, x: NDArray[Any]) -> NDArray[Any]:
        """Return an example for each input ``(n, ...)``, in its shape and dtype."""
        if x.shape[1:] != self.examples.shape[1:] or x.dtype.kind != self.examples.dtype.kind:
            raise ValueError(
                f"natural examples are {self.examples.dtype} {self.examples.shape[1:]}, the "
                f"inputs {x.dtype} {x.shape[1:]}; take examples of the same data"
            )
        chosen = content_numbers(x, self.key, 1)[:, 0] % len(self.examples)
        return np.asarray(self.examples[chosen], dtype=x.dtype)

    def split(self, n_first: int) -> tuple[Natural, Natural]:
        """Return the first examples, to train with, and the others, to measure with."""
        if not 0 < n_first < len(self.examples):
            raise ValueError(
                f"n_first must leave examples on both sides, got {n_first} of {len(self.examples)}"
            )
        parts = self.examples[:n_first], self.examples[n_first:]
        first, others = (Natural(examples=p, key=self.key, name=self.name) for p in parts)
        return first, others
