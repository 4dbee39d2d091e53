"""Edge-case backdoor: the attacker relabels rare natural examples, no trigger is stamped."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from fl_shield.activations import activations_of
from fl_shield.attacks.arithmetic import move
from fl_shield.attacks.local import check_n_epochs, pool_peers
from fl_shield.attacks.norm_clipped import NormClipped
from fl_shield.attacks.poisoning import check_poison_rate
from fl_shield.stages import find_layers
from fl_shield.training import set_arrays
from fl_shield.triggers.natural import Natural
from fl_shield.types import AttackContext, Floats, Ints, Samples, Trigger


@dataclass(frozen=True, kw_only=True)
class EdgeCase:
    """Trains edge cases as the target class, by projected gradient descent inside a ball.

    The edge cases are the examples of a :class:`~fl_shield.triggers.Natural` trigger. Given
    another trigger, the attack takes its own from what the malicious clients of the round hold
    together: those examples of other classes that are least likely under a mixture of one
    Gaussian a class in the global model's penultimate layer (:func:`log_densities`). Examples
    that serve as edge cases are left out of the clean part of the mix, for there they would
    teach their true label.

    Attributes
    ----------
    tail_share : float
        Share of the other classes' examples that are edge cases, in (0, 1]; at least one.
    clip_norm : float, optional
        Radius of the ball, > 0. By default the median norm of the updates that the malicious
        clients of the round get by honest training.
    scale : float
        Boost of the projected update, > 0; larger than 1 for model replacement as well.
    poison_rate : float
        Edge cases in the mix for each example of another class than the target, in [0, 1].
    n_epochs : int, optional
        Passes over the mix; as many as honest clients make by default.

    References
    ----------
    Wang et al., "Attack of the Tails: Yes, You Really Can Backdoor Federated Learning", NeurIPS
    2020, section 3: edge cases by density, PGD (radius 0.25 on MNIST, 0.083 on CIFAR-10 in the
    released code, whose edge cases come from other data sets), PGD with replacement. The ball is
    entered again after every epoch.
    """

    tail_share: float = 0.05
    clip_norm: float | None = None
    scale: float = 1.0
    poison_rate: float = 0.5
    n_epochs: int | None = None

    def __post_init__(self) -> None:
        check_poison_rate(self.poison_rate)
        check_n_epochs(self.n_epochs)
        if not 0 < self.tail_share <= 1:
            raise ValueError(f"tail_share must be in (0, 1], got {self.tail_share}")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ValueError(f"clip_norm must be > 0, or None to learn it, got {self.clip_norm}")
        if not 0 < self.scale < float("inf"):
            raise ValueError(f"scale must be > 0 and finite, got {self.scale}")

    def __call__(self, context: AttackContext) -> dict[str, NDArray[Any]]:
        """Return the model that takes edge cases for the target, projected and scaled."""
        trigger = self.trigger(context)
        data = context.data
        if isinstance(trigger, Natural):
            data = without(data, trigger.examples)
        attack = NormClipped(
            clip_norm=self.clip_norm, poison_rate=self.poison_rate, n_epochs=self.n_epochs
        )
        poisoned = attack(replace(context, data=data, trigger=trigger))
        return move(context.global_arrays, poisoned, self.scale)

    def trigger(self, context: AttackContext) -> Trigger:
        """Return the edge cases of this round; the client's stream is left alone.

        Without any example of another class the given trigger comes back.
        """
        pool = pool_peers(context)
        candidates = np.flatnonzero(pool.y != context.target_label)
        if isinstance(context.trigger, Natural) or len(candidates) == 0:
            return context.trigger
        model = set_arrays(context.model, context.global_arrays)
        head = find_layers(model, 1)[0]
        features = activations_of(model, pool.x, (head,))[0][head]
        densities = log_densities(features, pool.y)[candidates]
        n_tail = max(1, round(self.tail_share * len(candidates)))
        tail = candidates[np.argsort(densities, kind="stable")[:n_tail]]
        return Natural(examples=pool.x[tail])


def log_densities(features: Floats, labels: Ints, ridge: float = 0.01) -> Floats:
    """Log-density of each point under one Gaussian a class, all with the same covariance.

    Parameters
    ----------
    features : (n, d) float array
        Points the mixture is fitted to, n >= 1.
    labels : (n,) int array
        Their classes; each weighs as many points as it has.
    ridge : float
        Share of the mean variance that is added to the covariance's diagonal, >= 0, so that it
        can be inverted however few points there are.

    Returns
    -------
    (n,) float array

    Examples
    --------
    >>> points = np.array([[0.0], [0.1], [-0.1], [3.0]])
    >>> int(log_densities(points, np.zeros(4, np.int64)).argmin())
    3
    """
    wide = features.astype(np.float64)
    n_points, d = wide.shape
    classes, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
    means = np.stack([wide[labels == label].mean(0) for label in classes])
    residuals = wide - means[index]
    covariance = residuals.T @ residuals / n_points
    covariance += (ridge * np.trace(covariance) / d + 1e-12) * np.eye(d)
    factor = np.linalg.cholesky(covariance)
    white, centres = np.linalg.solve(factor, wide.T).T, np.linalg.solve(factor, means.T).T
    squared = ((white[:, None] - centres[None]) ** 2).sum(-1)
    constant = -0.5 * d * np.log(2 * np.pi) - np.log(np.diag(factor)).sum()
    densities: Floats = logsumexp(np.log(counts / n_points) - squared / 2, axis=1) + constant
    return densities


def without(samples: Samples, examples: NDArray[Any]) -> Samples:
    """Samples whose input is none of some examples, bit for bit.

    Examples
    --------
    >>> samples = Samples(x=np.array([[1], [2], [1]]), y=np.array([0, 1, 2]))
    >>> without(samples, np.array([[1]])).y.tolist()
    [1]
    """
    known = {np.asarray(example, samples.x.dtype).tobytes() for example in examples}
    return samples.take(np.array([row.tobytes() not in known for row in samples.x], bool))
