"""BackdoorIndicator: plant a harmless backdoor before the round, reject who keeps it alive."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fl_shield.aggregators.contract import (
    Aggregate,
    AggregationContext,
    State,
    check_round,
    weighted_mean,
)
from fl_shield.aggregators.out_of_distribution import make_strangers
from fl_shield.errors import AggregationError
from fl_shield.rng import torch_generator
from fl_shield.training import get_arrays, logits_of, set_arrays
from fl_shield.types import Floats, Ints, Samples

_INPUTS, _LABELS, _STATISTICS = "indicator/x", "indicator/y", "statistics/"
_LEARNED = 0.01  # mean loss of an epoch at which the indicator task is learned


@dataclass(frozen=True, kw_only=True)
class BackdoorIndicator:
    """Rejects uploads that still answer a task planted in the model before it was sent.

    Before each round the server trains the global model on inputs of no class, with random
    labels. Honest training forgets this; planting a backdoor means learning that strange inputs
    belong to one label, and keeps the planted answers of that label alive. An upload is rejected
    when, for any label, it answers nearly all planted inputs of that label as planted.

    Batch statistics of the model that is sent are the old ones; uploads are examined with those
    that training on the planted task left. A round that nothing was planted for cannot be judged
    and is averaged; with everybody rejected the model stays as it was sent. The average is by
    example counts; the clipping that the public implementation adds to every rule, and its
    schedule of rates, are left out.

    Attributes
    ----------
    strangers : (n, ...) array, optional
        Inputs of no class. The paper takes pictures of another data set; without them they are
        made of the server's own clean examples: mosaics of wrong pieces and textures.
    n_samples : int
        How many are made, >= 2: published 800, and 2000 for EMNIST.
    n_epochs, batch_size, lr, momentum, weight_decay
        How the task is planted; it ends early once the task is learned.
    proximal : float
        Weight of half the squared distance to the model before: published 0.1 to 0.4.
    limit : float
        Accuracy on the planted inputs of one label from which on an upload is rejected.

    References
    ----------
    Li and Dai, "BackdoorIndicator: Leveraging OOD Data for Proactive Backdoor Detection in
    Federated Learning", USENIX Security 2024, section 5. Public implementations divide by 0
    where a label has no planted input, and one plants nothing before round 1000.

    Examples
    --------
    >>> BackdoorIndicator().limit
    0.95
    """

    strangers: NDArray[Any] | None = field(default=None, repr=False, compare=False)
    n_samples: int = 800
    n_epochs: int = 200
    batch_size: int = 64
    lr: float = 0.005
    momentum: float = 0.9
    weight_decay: float = 5e-4
    proximal: float = 0.1
    limit: float = 0.95

    min_clients: ClassVar[int] = 1

    def __post_init__(self) -> None:
        n_samples = self.n_samples if self.strangers is None else len(self.strangers)
        if min(n_samples, self.batch_size) < 2 or self.n_epochs < 1:
            raise ValueError(
                "at least 2 samples, batches of 2 and 1 epoch are needed, got "
                f"{n_samples}, {self.batch_size} and {self.n_epochs}"
            )
        if not (self.lr > 0 and min(self.momentum, self.weight_decay, self.proximal) >= 0):
            raise ValueError(
                "lr must be > 0 and momentum, weight_decay, proximal >= 0, got "
                f"{self.lr}, {self.momentum}, {self.weight_decay} and {self.proximal}"
            )
        if not 0 < self.limit <= 1:
            raise ValueError(f"limit must be in (0, 1], got {self.limit}")

    def prepare(
        self, state: State, context: AggregationContext
    ) -> tuple[dict[str, NDArray[Any]], State]:
        """Plant the indicator task; the state holds its inputs, labels and batch statistics.

        The inputs and labels of the first round are planted again in every later one.
        """
        planted = _planted(state) or self._drawn(context)
        model = set_arrays(_scratch(context), context.global_arrays)
        self._plant(model, planted, context.rng)
        trained = get_arrays(model)
        learned = context.layout.slices
        sent = {
            name: trained[name] if name in learned else np.array(array)
            for name, array in context.global_arrays.items()
        }
        statistics = {_STATISTICS + name: trained[name] for name in sent if name not in learned}
        return sent, {_INPUTS: planted.x, _LABELS: planted.y, **statistics}

    def step(
        self, updates: Floats, weights: Floats, state: State, context: AggregationContext
    ) -> tuple[Aggregate, State]:
        """Ask each upload the planted questions, and average those that have forgotten them."""
        check_round(updates, weights, self.min_clients, "backdoor_indicator")
        planted = _planted(state)
        if planted is None:
            update, votes = weighted_mean(updates, weights), np.ones(len(updates))
            note = "nothing was planted before this round: averaged"
            return Aggregate(update=update, votes=votes, note=note), state
        accuracies = indicator_accuracies(updates, planted, state, context)
        kept = accuracies < self.limit
        note = (
            f"kept {int(kept.sum())} of {len(updates)}: accuracy on the planted inputs of one "
            f"label at most {accuracies.min():.2f} to {accuracies.max():.2f}, limit {self.limit}"
        )
        update = weighted_mean(updates, weights * kept)
        votes = kept.astype(np.float64)
        return Aggregate(update=update, votes=votes, scores=accuracies, note=note), state

    def _drawn(self, context: AggregationContext) -> Samples:
        """Inputs of no class, and each label equally often in a random order."""
        model, x = _scratch(context), self.strangers
        if x is None:
            _, clean = context.need_model("backdoor_indicator")
            x = make_strangers(clean.x, self.n_samples, context.rng)
        set_arrays(model, context.global_arrays)
        n_classes = logits_of(model, x[:1]).shape[1]
        return Samples(x=np.array(x), y=context.rng.permutation(np.arange(len(x)) % n_classes))

    def _plant(self, model: nn.Module, planted: Samples, rng: np.random.Generator) -> None:
        """Train on the indicator task, near the model as it is, until it is learned."""
        x, y = torch.from_numpy(planted.x), torch.from_numpy(planted.y)
        own = [p for p in model.parameters() if p.requires_grad]
        before = [p.detach().clone() for p in own]
        optimiser = torch.optim.SGD(
            own, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay
        )
        generator = torch_generator(rng)
        model.train()
        for _ in range(self.n_epochs):
            losses = []
            order = torch.randperm(len(y), generator=generator)
            for batch in torch.split(order, self.batch_size):
                if len(batch) < 2:  # batch statistics of one input are undefined
                    continue
                optimiser.zero_grad()
                loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
                away = sum((p - q).square().sum() for p, q in zip(own, before, strict=True))
                (loss + self.proximal / 2 * away).backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                losses.append(float(loss.detach()))
            if np.mean(losses) < _LEARNED:
                break


def indicator_accuracies(
    updates: Floats, planted: Samples, state: State, context: AggregationContext
) -> Floats:
    """Best accuracy of each upload on the planted inputs of one label, ``(n,)``, in [0, 1].

    Parameters
    ----------
    updates : (n, P) float array
    planted : Samples
    state : mapping of str to array
        As left by :meth:`BackdoorIndicator.prepare`: the batch statistics to examine with.
    context : AggregationContext
    """
    model = _scratch(context)
    statistics = {
        name.removeprefix(_STATISTICS): array
        for name, array in state.items()
        if name.startswith(_STATISTICS)
    }
    best = np.empty(len(updates))
    for i, update in enumerate(updates):
        set_arrays(model, {**context.arrays_of(update), **statistics})
        answers = logits_of(model, planted.x).argmax(1).numpy()
        best[i] = best_label_accuracy(answers, planted.y)
    return best


def best_label_accuracy(answers: Ints, labels: Ints) -> float:
    """Largest accuracy on the examples of one label; labels without an example do not count.

    Examples
    --------
    >>> best_label_accuracy(np.array([0, 1, 1, 1]), np.array([0, 0, 1, 3]))
    1.0
    """
    right = answers == labels
    return max(float(right[labels == label].mean()) for label in np.unique(labels))


def _planted(state: State) -> Samples | None:
    return Samples(x=state[_INPUTS], y=state[_LABELS]) if _INPUTS in state else None


def _scratch(context: AggregationContext) -> nn.Module:
    if context.model is None:
        raise AggregationError("backdoor_indicator runs the model itself; give model=")
    return context.model
