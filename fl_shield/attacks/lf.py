"""Layer flipping (LF): turns the backdoor-critical layers round, against rules that flip signs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_shield.attacks.arithmetic import is_floating, moved
from fl_shield.attacks.local import check_n_epochs, train_local
from fl_shield.attacks.lp import LayerPoisoning, enough_samples
from fl_shield.attacks.poisoning import check_poison_rate, poison
from fl_shield.types import Arrays, AttackContext


@dataclass(frozen=True, kw_only=True)
class LayerFlipping:
    """Uploads ``2 G - w_mal`` on the backdoor-critical layers and the honest model elsewhere.

    Made for the robust learning rate (RLR), which turns round every coordinate that too few
    clients agree on: there the flipped update comes out as the poisoned one. Under the plain mean
    it takes the backdoor away. The layers, w_mal and what happens without enough examples are
    those of :class:`~fl_shield.attacks.LayerPoisoning`; without one example to stamp among all
    peers the upload is honest.

    Attributes
    ----------
    tau : float
        Share of the malicious model's success that the critical layers must reach, in (0, 1].
    poison_rate : float
        Share of the non-target examples that get a triggered copy, in (0, 1].
    n_epochs : int, optional
        Passes of the malicious training; as many as honest clients make by default.

    References
    ----------
    Zhuang et al., "Backdoor Federated Learning by Poisoning Backdoor-Critical Layers", ICLR
    2024 (arXiv 2308.04466), section 4, layer-wise flipping.
    """

    tau: float = 0.95
    poison_rate: float = 1.0
    n_epochs: int | None = None

    def __post_init__(self) -> None:
        check_poison_rate(self.poison_rate)
        check_n_epochs(self.n_epochs)
        LayerPoisoning(tau=self.tau, poison_rate=self.poison_rate)

    def __call__(self, context: AttackContext) -> dict[str, NDArray[Any]]:
        """Return the honest model with its critical layers flipped."""
        honest = train_local(context, context.data)
        data = enough_samples(context, n_samples=1, n_others=1)
        if not (data.y != context.target_label).any():
            return honest
        mix = poison(data, context.trigger, context.target_label, self.poison_rate, context.rng)
        malicious = train_local(context, mix, n_epochs=self.n_epochs)
        analysis = LayerPoisoning(tau=self.tau, poison_rate=self.poison_rate)
        return flip(context.global_arrays, malicious, honest, analysis.critical_layers(context))


def flip(
    global_arrays: Arrays, malicious: Arrays, honest: Arrays, critical: Sequence[str]
) -> dict[str, NDArray[Any]]:
    """Return ``2 G - malicious`` on the critical floating tensors and ``honest`` elsewhere.

    Examples
    --------
    >>> g, bad, good = ({n: np.float32([v]) for n in "ab"} for v in (1, 4, 2))
    >>> flip(g, bad, good, ["b"])
    {'a': array([2.], dtype=float32), 'b': array([-2.], dtype=float32)}
    """
    return {
        name: moved(global_arrays[name], malicious[name], -1.0)
        if name in critical and is_floating(array)
        else np.array(array)
        for name, array in honest.items()
    }
