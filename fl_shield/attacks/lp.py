"""Layer poisoning (LP): a backdoor in the few layers that carry it, an honest model elsewhere."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_shield.attacks.arithmetic import average
from fl_shield.attacks.layer_substitution import layer_substitution_analysis
from fl_shield.attacks.local import check_n_epochs, train_local, train_peers
from fl_shield.attacks.poisoning import check_poison_rate, poison
from fl_shield.attacks.success import backdoor_success, stamped_others
from fl_shield.training import accuracy, set_arrays
from fl_shield.types import Arrays, AttackContext, Samples


@dataclass(frozen=True, kw_only=True)
class LayerPoisoning:
    """Finds the backdoor-critical layers L* and poisons only these.

    On L* it uploads ``G + lambda * (u_mal - G) + max(0, 1 - lambda) * (u_avg - G)``, elsewhere
    ``u_avg``, the mean of the honest models of the round's malicious clients. G is the global
    model, u_mal a model trained from it on clean and triggered examples. A layer is one named
    parameter tensor; batch statistics are no layers and stay benign.

    L* comes from :func:`~fl_shield.attacks.layer_substitution.layer_substitution_analysis` of
    two models trained for it on 75 % of the client's own examples and judged on the other 25 %.
    Where those cannot carry the analysis (fewer than ``min_samples``, or none that is not of
    the target class), the malicious clients of the round pool theirs. Where that fails too
    (accuracy below ``give_up_accuracy``, or no backdoor in the malicious model), L* is the last
    dense layer, where the paper finds the backdoor most often. Without one example to stamp
    among all peers there is nothing to poison with: the upload is ``u_avg``.

    Attributes
    ----------
    lambda_ : float
        Strength of the poison on L*, > 0; 1 in the paper, 0.5 on Fashion-MNIST.
    tau : float
        Share of the malicious model's success that L* must reach, in (0, 1].
    poison_rate : float
        Share of the non-target examples that get a triggered copy, in (0, 1].
    n_epochs : int, optional
        Passes of the malicious training; as many as honest clients make by default.
    validation_share : float
        Share of the examples that judge the analysis, in (0, 1).
    max_analysis_samples, min_samples : int
        Most and fewest examples that the analysis uses.
    max_passes, check_every : int
        The analysis trains its benign model for at most ``max_passes`` passes and looks every
        ``check_every`` passes whether it has reached ``target_accuracy``.
    target_accuracy, give_up_accuracy : float
        Training accuracy that is enough, and below which the analysis is not believed; below
        half of the latter after half of the passes it gives up early.
    max_malicious_passes, min_success : int, float
        The analysis trains its malicious model for one pass more (as published), and repeats
        it, at most ``max_malicious_passes`` times, while its backdoor works on less than
        ``min_success``: one pass over a small client's data is only a few steps.
    adaptive : bool
        Ask ``context.score`` about the upload and, while it exceeds ``score_threshold``, leave
        out the least critical layer; with none left the upload is ``u_avg``.
    score_threshold : float
        Score above which the server is taken to reject.

    References
    ----------
    Zhuang et al., "Backdoor Federated Learning by Poisoning Backdoor-Critical Layers", ICLR
    2024 (arXiv 2308.04466), sections 3 and 4. The training rates of the analysis are those of
    honest clients (there batch 64, SGD 0.1, momentum 0.5). Layers with equal drops, common with
    few validation examples, are ordered by the drop of the target's mean probability.
    """

    lambda_: float = 1.0
    tau: float = 0.95
    poison_rate: float = 1.0
    n_epochs: int | None = None
    validation_share: float = 0.25
    max_analysis_samples: int = 256
    min_samples: int = 16
    max_passes: int = 30
    check_every: int = 4
    target_accuracy: float = 0.9
    give_up_accuracy: float = 0.8
    max_malicious_passes: int = 8
    min_success: float = 0.8
    adaptive: bool = False
    score_threshold: float = 0.5

    def __post_init__(self) -> None:
        check_poison_rate(self.poison_rate)
        check_n_epochs(self.n_epochs)
        if self.lambda_ <= 0 or self.poison_rate == 0:
            raise ValueError(
                f"lambda_ and poison_rate must be > 0, got {self.lambda_} and {self.poison_rate}; "
                "use the attack none for honest uploads"
            )
        for name in ("tau", "validation_share"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in (0, 1], got {getattr(self, name)}")
        for name in ("max_passes", "check_every", "max_malicious_passes", "min_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.max_analysis_samples < self.min_samples:
            raise ValueError(
                f"max_analysis_samples must be >= min_samples, got {self.max_analysis_samples} "
                f"and {self.min_samples}"
            )

    def __call__(self, context: AttackContext) -> dict[str, NDArray[Any]]:
        """Return the honest average with the poisoned critical layers."""
        if self.adaptive and context.score is None:
            raise ValueError(
                "adaptive LP needs context.score, got None; give it or set adaptive=False"
            )
        honest = average(train_peers(context))
        data = enough_samples(context, n_samples=1, n_others=1)
        if not (data.y != context.target_label).any():
            return honest
        mix = poison(data, context.trigger, context.target_label, self.poison_rate, context.rng)
        malicious = train_local(context, mix, n_epochs=self.n_epochs)
        critical = self.critical_layers(context)
        upload = self.craft(context.global_arrays, malicious, honest, critical)
        while self.adaptive and critical and self._is_rejected(context, upload):
            critical = critical[:-1]
            upload = self.craft(context.global_arrays, malicious, honest, critical)
        return upload

    def craft(
        self, global_arrays: Arrays, malicious: Arrays, honest: Arrays, critical: list[str]
    ) -> dict[str, NDArray[Any]]:
        """Poison the critical layers of the honest average, all else as it is (section 4)."""
        rest = max(0.0, 1.0 - self.lambda_)
        upload = {name: np.array(array) for name, array in honest.items()}
        for name in critical:
            start = global_arrays[name].astype(np.float64)
            mixed = start + self.lambda_ * (malicious[name] - start) + rest * (honest[name] - start)
            upload[name] = np.asarray(mixed, dtype=honest[name].dtype)
        return upload

    def critical_layers(self, context: AttackContext) -> list[str]:
        """Names of the critical layers L*, the most critical first, or the last dense layer."""
        layers = [name for name, _ in context.model.named_parameters()]
        fallback = last_dense_layer(context.global_arrays, layers)
        n_others = int(np.ceil(1 / self.validation_share))
        data = enough_samples(context, n_samples=self.min_samples, n_others=n_others)
        training, validation = self._split(data, context.rng)
        stamped = stamped_others(validation, context.trigger, context.target_label)
        if len(data) < self.min_samples or len(stamped) == 0 or len(training) == 0:
            return fallback

        def success(arrays: Arrays) -> float:
            set_arrays(context.model, arrays)
            return backdoor_success(context.model, stamped, context.target_label)

        benign = self._train_benign(context, training)
        if benign is None:
            return fallback
        malicious = self._train_malicious(context, training, benign, success)
        critical, _ = layer_substitution_analysis(benign, malicious, success, layers, self.tau)
        return critical or fallback

    def _split(self, data: Samples, rng: np.random.Generator) -> tuple[Samples, Samples]:
        """Random training and validation parts of at most ``max_analysis_samples`` examples."""
        order = rng.permutation(len(data))[: self.max_analysis_samples]
        n_validation = round(self.validation_share * len(order))
        return data.take(order[n_validation:]), data.take(order[:n_validation])

    def _train_benign(
        self, context: AttackContext, training: Samples
    ) -> dict[str, NDArray[Any]] | None:
        """Train on clean examples until they are learned; None if they never are."""
        arrays, learned, n_passes = dict(context.global_arrays), 0.0, 0
        while n_passes < self.max_passes and learned < self.target_accuracy:
            n_more = min(self.check_every, self.max_passes - n_passes)
            arrays = train_local(context, training, start=arrays, n_epochs=n_more)
            learned = accuracy(context.model, training)
            n_passes += n_more
            if n_passes >= self.max_passes / 2 and learned < self.give_up_accuracy / 2:
                return None
        return arrays if learned >= self.give_up_accuracy else None

    def _train_malicious(
        self,
        context: AttackContext,
        training: Samples,
        benign: Arrays,
        success: Callable[[Arrays], float],
    ) -> dict[str, NDArray[Any]]:
        """Train the benign model on for one pass over the mix, or a few until it is poisoned."""
        mix = poison(training, context.trigger, context.target_label, self.poison_rate, context.rng)
        arrays = dict(benign)
        for _ in range(self.max_malicious_passes):
            arrays = train_local(context, mix, start=arrays, n_epochs=1)
            if success(arrays) >= self.min_success:
                break
        return arrays

    def _is_rejected(self, context: AttackContext, upload: Arrays) -> bool:
        return context.score is not None and context.score(upload) > self.score_threshold


def last_dense_layer(arrays: Arrays, layers: Sequence[str]) -> list[str]:
    """Names from the last weight of two or more dimensions on: the head and its bias.

    Examples
    --------
    >>> shapes = {"conv.weight": (4, 1, 3, 3), "fc.weight": (2, 4), "fc.bias": (2,)}
    >>> last_dense_layer({name: np.zeros(shape) for name, shape in shapes.items()}, list(shapes))
    ['fc.weight', 'fc.bias']
    """
    weights = [i for i, name in enumerate(layers) if arrays[name].ndim >= 2]
    return list(layers[weights[-1] :]) if weights else list(layers)


def enough_samples(context: AttackContext, *, n_samples: int, n_others: int) -> Samples:
    """Return the client's own examples, or those of all malicious clients if too few."""
    n_own_others = np.count_nonzero(context.data.y != context.target_label)
    if len(context.data) >= n_samples and n_own_others >= n_others:
        return context.data
    return Samples.join(context.peers or (context.data,))
