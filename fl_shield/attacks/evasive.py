"""Evasive poisoning: trained to carry the backdoor and to look benign to the server's own rule."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fl_shield.attacks.arithmetic import move
from fl_shield.attacks.local import check_n_epochs, train_local
from fl_shield.attacks.norm_clipped import NormClipped, honest_norm, project
from fl_shield.attacks.poisoning import check_poison_rate, poison
from fl_shield.rng import torch_generator
from fl_shield.training import evaluating, get_arrays, set_arrays
from fl_shield.types import Arrays, AttackContext, Samples

Suspicion = Callable[[Mapping[str, Tensor]], Tensor]
"""From the trainable tensors of an upload, by name, to a scalar: higher = more suspicious."""

BETAS = (0.9, 0.99)
"""Adam's: a rule is steep here and flat there, and a forgetful second moment follows it."""


@dataclass(frozen=True, kw_only=True)
class Evasive:
    """Trains against the server's rule as far as it knows it.

    With ``context.suspicion``, which has gradients, it trains on poisoned data from the global
    model as data poisoning does, and then minimises ``CE + penalty * max(0, suspicion - margin)``
    over poisoned batches by Adam. (Plain gradient steps from the start fail: a rule is hundreds of
    times as steep as the cross-entropy, and they leave new traces of their own.) With
    ``context.score`` alone it asks: it takes the norm-clipped poisoned model X and shrinks what
    sets it apart from an honest model H, ``H + s * (X - H)``, until the score is below
    ``score_threshold``; where none is, it uploads H. With neither it is
    :class:`~fl_shield.attacks.norm_clipped.NormClipped`.

    Attributes
    ----------
    penalty : float
        Weight of the suspicion above the margin, >= 0; 0 leaves data poisoning.
    margin : float
        Suspicion that is low enough; log-odds, for those of :mod:`fl_shield.live_suspicion`.
    n_steps : int
        Batches of the training against the rule, >= 1; each asks for the suspicion once.
    lr : float
        Adam's first rate there, > 0; it falls to zero in a line.
    poison_rate : float
        Share of the non-target examples that get a triggered copy, in [0, 1].
    n_epochs : int, optional
        Passes of the poisoned training before; as many as honest clients make by default.
    clip_norm : float, optional
        Radius of the L2 ball, > 0, onto which updates are projected. By default the median norm of
        the malicious clients' honest updates.
    clip : bool
        Whether an update that was trained against a suspicion is projected too, at the end.
    score_threshold : float
        Score below which the server is taken to accept.
    n_queries : int
        Shares ``s`` that are tried, >= 1: 1, 1 - 1 / n, ... down to 1 / n.

    References
    ----------
    Loss on the task and on the rule: Bagdasaryan et al., "How To Backdoor Federated Learning",
    AISTATS 2020, section 4.3 (constrain-and-scale; there the rule is a distance, weighed from the
    first step, and the update is scaled afterwards, which this one is not). Gradients through the
    whole rule: Athalye et al., "Obfuscated gradients give a false sense of security", ICML 2018,
    section 5. Shrinking until the server accepts: Fang et al., "Local Model Poisoning Attacks to
    Byzantine-Robust Federated Learning", USENIX Security 2020, section 3.2, who halve the distance
    to the global model; here the shares are even and it is the distance to an honest one.
    """

    penalty: float = 0.1
    margin: float = -2.0
    n_steps: int = 100
    lr: float = 1e-3
    poison_rate: float = 0.5
    n_epochs: int | None = None
    clip_norm: float | None = None
    clip: bool = False
    score_threshold: float = 0.5
    n_queries: int = 10

    def __post_init__(self) -> None:
        check_poison_rate(self.poison_rate)
        check_n_epochs(self.n_epochs)
        if not 0 <= self.penalty < float("inf"):
            raise ValueError(f"penalty must be >= 0 and finite, got {self.penalty}; 0.1 is usual")
        if not np.isfinite(self.margin):
            raise ValueError(f"margin must be a finite number, got {self.margin}; -2 is usual")
        if not 0 < self.lr < float("inf"):
            raise ValueError(f"lr must be > 0 and finite, got {self.lr}; 0.001 is usual")
        for name in ("n_steps", "n_queries"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ValueError(f"clip_norm must be > 0, or None to learn it, got {self.clip_norm}")

    def __call__(self, context: AttackContext) -> dict[str, NDArray[Any]]:
        """Return the arrays that were trained, or shrunk, to look benign."""
        if context.suspicion is not None:
            return self._trained(context, context.suspicion)
        poisoned = NormClipped(
            clip_norm=self.clip_norm, poison_rate=self.poison_rate, n_epochs=self.n_epochs
        )(context)
        return poisoned if context.score is None else self._shrunk(context, poisoned, context.score)

    def _trained(self, context: AttackContext, suspicion: Suspicion) -> dict[str, NDArray[Any]]:
        """Poison the global model, then train it against a suspicion."""
        mix = poison(
            context.data, context.trigger, context.target_label, self.poison_rate, context.rng
        )
        arrays = train_local(context, mix, n_epochs=self.n_epochs)
        if len(mix) and self.penalty > 0:
            arrays = self.evade(context, arrays, mix, suspicion)
        if not self.clip:
            return arrays
        radius = honest_norm(context) if self.clip_norm is None else self.clip_norm
        return project(arrays, context.global_arrays, radius)

    def evade(
        self, context: AttackContext, start: Arrays, mix: Samples, suspicion: Suspicion
    ) -> dict[str, NDArray[Any]]:
        """Train a model against a suspicion and return it as it was when it cost least.

        Batch statistics stay those of the start.
        """
        model = set_arrays(context.model, start)
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        optimiser = torch.optim.Adam(named.values(), lr=self.lr, betas=BETAS)
        generator, size = torch_generator(context.rng), context.training.batch_size
        x, y = torch.from_numpy(mix.x), torch.from_numpy(mix.y)
        best, least = get_arrays(model), float("inf")
        with evaluating(model):
            for step in range(self.n_steps):
                optimiser.param_groups[0]["lr"] = self.lr * (1 - step / self.n_steps)
                batch = torch.randperm(len(y), generator=generator)[:size]
                excess = (suspicion(named) - self.margin).clamp_min(0)
                cost = nn.functional.cross_entropy(model(x[batch]), y[batch])
                cost = cost + self.penalty * excess
                if cost.item() < least:
                    best, least = get_arrays(model), cost.item()
                optimiser.zero_grad()
                cost.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
        return best

    def _shrunk(
        self,
        context: AttackContext,
        poisoned: dict[str, NDArray[Any]],
        score: Callable[[Arrays], float],
    ) -> dict[str, NDArray[Any]]:
        """Shrink what sets a poisoned model apart until the server accepts it."""
        honest = train_local(context, context.data)
        for share in np.arange(self.n_queries, 0, -1) / self.n_queries:
            upload = move(honest, poisoned, float(share))
            if score(upload) < self.score_threshold:
                return upload
        return honest
