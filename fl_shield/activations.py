"""Views of inputs: what a model's layers say, read through forward hooks."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import get_ident
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fl_shield.errors import GuardError
from fl_shield.head import Head
from fl_shield.signature import Signature
from fl_shield.stages import find_stages
from fl_shield.training import evaluating
from fl_shield.types import Flags, Floats, Ints, View

Layers = Sequence[str] | Literal["auto"]


@dataclass(frozen=True, kw_only=True)
class Activations:
    """What one model says of n inputs: the common food of all one-pass detectors.

    Attributes
    ----------
    layers : mapping of str to (n, d) float array
        Pooled activations by layer and way of pooling (``conv2:max``), from the input to the
        head; the last one is the *input* of the head (penultimate activations).
    logits : (n, n_classes) float array
    head : (n_classes, d) float array, optional
        The head's weight, where it is a linear layer.

    Examples
    --------
    >>> rows = np.zeros((3, 4))
    >>> len(Activations(layers={"head": rows}, logits=np.zeros((3, 2))).take(np.array([0, 2])))
    2
    """

    layers: Mapping[str, Floats]
    logits: Floats
    head: Floats | None = None

    def __post_init__(self) -> None:
        if not self.layers:
            raise ValueError("activations need at least one layer, got none")
        shapes = {name: np.shape(rows) for name, rows in self.layers.items()}
        shapes["logits"] = np.shape(self.logits)
        for name, shape in shapes.items():
            if len(shape) != 2 or shape[0] != len(self.logits):
                raise ValueError(
                    f"{name} must be (n, d) with one row an input, got {shape} beside "
                    f"{len(self.logits)} rows of logits; pool each layer to one row an input"
                )

    def __len__(self) -> int:
        return len(self.logits)

    @property
    def penultimate(self) -> Floats:
        """Input of the head, (n, d)."""
        return self.layers[tuple(self.layers)[-1]]

    @property
    def labels(self) -> Ints:
        """Predicted classes, (n,)."""
        predicted: Ints = self.logits.argmax(1)
        return predicted

    def take(self, index: Ints | Flags | slice) -> Activations:
        """Return the inputs at ``index``."""
        layers = {name: rows[index] for name, rows in self.layers.items()}
        return Activations(layers=layers, logits=self.logits[index], head=self.head)

    @staticmethod
    def join(parts: Sequence[Activations]) -> Activations:
        """Return all inputs of ``parts``, of one model, in order."""
        layers = {name: np.concatenate([p.layers[name] for p in parts]) for name in parts[0].layers}
        logits = np.concatenate([p.logits for p in parts])
        return Activations(layers=layers, logits=logits, head=parts[0].head)


def pooled_ways(activation: Tensor) -> dict[str, Tensor]:
    """One row an input, in every way that may show a trigger.

    Of an image the mean and the maximum over places. Of a sequence the step of the largest norm
    (a trigger is a word among many), of each unit the largest size with its sign (states reach
    both ways), and the mean.

    Parameters
    ----------
    activation : (n, c, h, w), (n, length, d) or (n, d) tensor

    Examples
    --------
    >>> sorted(pooled_ways(torch.ones(2, 5, 4)))
    [':extreme', ':mean', ':peak']
    """
    if activation.ndim >= 4:
        flat = activation.flatten(2)
        return {":mean": flat.mean(-1), ":max": flat.amax(-1)}
    if activation.ndim == 3:
        return {
            ":extreme": _extreme(activation),
            ":peak": _peak(activation),
            ":mean": activation.mean(1),  # last, for it is what a head at each step says on average
        }
    return plainly(activation)


def _extreme(sequence: Tensor) -> Tensor:
    """Of each unit the number of the largest size over all steps: (n, length, d) to (n, d)."""
    largest, smallest = sequence.amax(1), sequence.amin(1)
    return torch.where(largest >= -smallest, largest, smallest)


def _peak(sequence: Tensor) -> Tensor:
    """The step of the largest norm: (n, length, d) to (n, d)."""
    step = sequence.detach().square().sum(-1).argmax(1)
    return sequence.take_along_dim(step[:, None, None], dim=1)[:, 0]


def pooled(activation: Tensor) -> Tensor:
    """One row an input: spatial means of (n, c, h, w), last step of (n, length, d), else flat.

    Examples
    --------
    >>> pooled(torch.ones(2, 3, 4, 4)).shape
    torch.Size([2, 3])
    """
    if activation.ndim >= 4:
        return activation.mean(dim=tuple(range(2, activation.ndim)))
    if activation.ndim == 3:
        return activation[:, -1]
    return activation.flatten(1) if activation.ndim > 1 else activation[:, None]


def plainly(activation: Tensor) -> dict[str, Tensor]:
    """One row an input, in one way: :func:`pooled`."""
    return {"": pooled(activation)}


Pool = Callable[[Tensor], dict[str, Tensor]]


@contextmanager
def watching(
    model: nn.Module,
    layers: Sequence[str],
    pool: Pool = plainly,
    *,
    once: bool = False,
    live: bool = False,
) -> Iterator[dict[str, Tensor]]:
    """Collect pooled activations while the model runs: outputs of layers, the last one's input.

    What other threads run meanwhile is not collected.

    Parameters
    ----------
    model : nn.Module
    layers : sequence of str
        Module names, the head last.
    pool : callable
        Activation to rows (n, d) by way of pooling; see :func:`pooled_ways`.
    once : bool
        Refuse a layer that runs again before what was collected is cleared.
    live : bool
        Keep the graph, for gradients that flow to the model's parameters.

    Yields
    ------
    dict of str to (n, d) tensor
        By layer and way of pooling, such as ``conv2:max``; by layer where there is one way.
        Filled by each forward pass and overwritten by the next one.
    """
    modules = dict(model.named_modules())
    unknown = [name for name in layers if name not in modules]
    if unknown:
        raise GuardError(
            f"no layer named {unknown[0]!r} in {type(model).__name__}; "
            f"known layers: {', '.join(n for n in modules if n)}"
        )
    seen: dict[str, Tensor] = {}
    ran: set[str] = set()
    thread = get_ident()

    def keep(name: str, activation: Any) -> None:
        if get_ident() == thread:
            rows = _rows(name, activation, pool, again=once and name in ran, live=live)
            seen.update({name + way: part for way, part in rows.items()})
            ran.add(name)

    def keep_output(name: str) -> Any:
        return lambda _module, _inputs, output: keep(name, output)

    # a forward pass of another thread may meet this hook after it was removed, and then gives
    # it no named arguments
    def keep_input(
        _module: nn.Module, inputs: Any, named: Any = types.MappingProxyType({})
    ) -> None:
        keep(layers[-1], (*inputs, *named.values()))

    handles = [modules[name].register_forward_hook(keep_output(name)) for name in layers[:-1]]
    head = modules[layers[-1]]
    handles.append(head.register_forward_pre_hook(keep_input, with_kwargs=True))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _rows(name: str, activation: Any, pool: Pool, *, again: bool, live: bool) -> dict[str, Tensor]:
    """Pooled copies of what a layer said: later layers may work in place."""
    if again:
        raise GuardError(
            f"layer {name!r} runs several times in one forward pass; "
            "name layers that run once: layers=[...], the head last"
        )
    first = activation[0] if isinstance(activation, tuple) and activation else activation
    if not isinstance(first, Tensor) or first.ndim == 0:
        raise GuardError(
            f"layer {name!r} gives {type(first).__name__}, not a tensor with one row an input; "
            "name layers that do: layers=[...], the head last"
        )
    rows = pool(first if live else first.detach())
    return rows if first.ndim >= 4 else {way: part.clone() for way, part in rows.items()}


@torch.inference_mode()
def activations_of(
    model: nn.Module, x: NDArray[Any], layers: Sequence[str], batch_size: int = 512
) -> tuple[dict[str, Floats], Floats]:
    """Pooled activations by layer, each (n, d), and logits (n, n_classes), in eval mode."""
    rows: dict[str, list[Tensor]] = {name: [] for name in layers}
    logits: list[Tensor] = []
    with evaluating(model), watching(model, layers) as seen:
        for batch in torch.split(torch.from_numpy(x), batch_size):
            logits.append(model(batch).float())
            for name in layers:
                rows[name].append(seen[name].float())
    return {name: torch.cat(parts).numpy() for name, parts in rows.items()}, torch.cat(
        logits
    ).numpy()


@torch.inference_mode()
def read_activations(
    model: nn.Module, x: NDArray[Any], layers: Layers = "auto", batch_size: int = 512
) -> Activations:
    """Run a model over inputs (n, ...) and keep what its layers and its head say.

    Parameters
    ----------
    model : nn.Module
        Maps inputs to logits (n, n_classes); runs in eval mode, its own mode comes back.
    x : (n, ...) array
    layers : sequence of str, or "auto"
        Module names, the head last; ``auto`` asks :func:`find_stages`.
    batch_size : int
    """
    names = find_stages(model) if isinstance(layers, str) else tuple(layers)
    rows: dict[str, list[Tensor]] = {}
    logits: list[Tensor] = []
    with evaluating(model), watching(model, names, pooled_ways) as seen:
        for batch in torch.split(torch.from_numpy(x), batch_size):
            logits.append(model(batch).float())
            for name, part in in_order(seen, names).items():
                rows.setdefault(name, []).append(part.float())
    return Activations(
        layers={name: torch.cat(parts).numpy() for name, parts in rows.items()},
        logits=torch.cat(logits).numpy(),
        head=head_weight(model, names[-1]),
    )


def in_order(seen: Mapping[str, Tensor], layers: Sequence[str]) -> dict[str, Tensor]:
    """What :func:`watching` collected, in the order of ``layers``, each in all its ways.

    Examples
    --------
    >>> rows = torch.zeros(1, 1)
    >>> list(in_order({"fc": rows, "conv:max": rows, "conv:mean": rows}, ["conv", "fc"]))
    ['conv:max', 'conv:mean', 'fc']
    """
    return {key: seen[key] for name in layers for key in seen if module_of(key) == name}


def module_of(layer: str) -> str:
    """Name of the module that a pooled layer such as ``conv2:max`` comes from."""
    return layer.partition(":")[0]


def head_beside(references: Activations) -> Head:
    """The head beside what clean references ask of it, for the statistics of any points."""
    rows = references.penultimate
    signature = Signature.of(references.logits, rows, references.head)
    return Head.of(references.head, (rows.min(0), rows.max(0)), signature)


def views_beside(points: Activations, references: Activations) -> list[View]:
    """One view for each watched layer: points (n) beside clean references (m) of one model."""
    if list(points.layers) != list(references.layers):
        raise ValueError(
            f"points have the layers {', '.join(points.layers)} and references "
            f"{', '.join(references.layers)}: watch the same layers of one model"
        )
    head = head_beside(references)
    own = head.statistics(points.logits, points.penultimate)
    beside = head.reference_statistics(references.logits, references.penultimate)
    depths = np.linspace(1 / len(points.layers), 1, len(points.layers))
    return [
        View(
            name=f"layer:{name}",
            points=points.layers[name],
            references=references.layers[name],
            statistics=own,
            reference_statistics=beside,
            kind="activation",
            depth=float(depth),
        )
        for name, depth in zip(points.layers, depths, strict=True)
    ]


def activation_views(
    model: nn.Module, x: NDArray[Any], clean: NDArray[Any], layers: Layers = "auto"
) -> list[View]:
    """One view for each watched layer: inputs beside clean inputs of the same model.

    Parameters
    ----------
    model : nn.Module
        Maps inputs to logits (n, n_classes).
    x, clean : arrays
        Inputs to judge (n, ...) and clean references (m, ...), m >= 3.
    layers : sequence of str, or "auto"
        Module names, the head last; ``auto`` asks :func:`find_stages`.
    """
    names = find_stages(model) if isinstance(layers, str) else tuple(layers)
    return views_beside(read_activations(model, x, names), read_activations(model, clean, names))


def head_weight(model: nn.Module, name: str) -> Floats | None:
    """Weight (n_classes, d) of a linear layer, float32; None where it is another kind of layer."""
    module = dict(model.named_modules())[name]
    if not isinstance(module, nn.Linear):
        return None
    weight: Floats = module.weight.detach().cpu().float().numpy()
    return weight
