"""Label flip: honest training on mirrored labels."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_shield.attacks.local import check_n_epochs, train_local
from fl_shield.training import logits_of
from fl_shield.types import AttackContext, Samples


@dataclass(frozen=True, kw_only=True)
class LabelFlip:
    """Trains on its own examples with label y replaced by ``C - 1 - y`` of C classes.

    C is the number of the network's outputs. With an odd C the middle class keeps its label.

    Attributes
    ----------
    n_epochs : int, optional
        Passes over the examples; as many as honest clients make by default.

    References
    ----------
    Fang et al., "Local Model Poisoning Attacks to Byzantine-Robust Federated Learning", USENIX
    Security 2020, section 4.1.

    Examples
    --------
    >>> flipped(Samples(x=np.zeros((3, 1)), y=np.array([0, 1, 9])), 10).y.tolist()
    [9, 8, 0]
    """

    n_epochs: int | None = None

    def __post_init__(self) -> None:
        check_n_epochs(self.n_epochs)

    def __call__(self, context: AttackContext) -> dict[str, NDArray[Any]]:
        """Return the arrays trained on mirrored labels."""
        samples = context.data
        if len(samples):
            n_classes = logits_of(context.model, samples.x[:1]).shape[1]
            samples = flipped(samples, n_classes)
        return train_local(context, samples, n_epochs=self.n_epochs)


def flipped(samples: Samples, n_classes: int) -> Samples:
    """Return the examples with labels ``n_classes - 1 - y``, dtype kept."""
    return Samples(x=samples.x, y=np.asarray(n_classes - 1 - samples.y, dtype=samples.y.dtype))
