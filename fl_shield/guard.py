"""A model with a watchman: predictions as ever, and beside each a verdict on its input.

The guard reads what the layers say in the one forward pass that the model does anyway. Hooks
live for the length of a call, so the model can be copied, pickled, trained and compiled as
before; calls from several threads do not see each other.

Where a model runs elsewhere (TensorFlow, ONNX, a remote service), its activations are enough:
:meth:`Guard.from_features` and :meth:`Guard.judge`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from fl_shield.activations import (
    Activations,
    Layers,
    head_weight,
    in_order,
    module_of,
    pooled_ways,
    watching,
)
from fl_shield.detector import MetaShield
from fl_shield.errors import GuardError
from fl_shield.fingerprint import Seal, fingerprint
from fl_shield.judge import LEAST, Judge, Judgement, Promised
from fl_shield.judge_file import read, write
from fl_shield.stages import find_stages
from fl_shield.training import evaluating
from fl_shield.types import Floats


class Guard:
    """A model and the judge of its inputs: :meth:`fit`, :meth:`from_features` or :meth:`load` one.

    Parameters
    ----------
    judge : Judge
        Adapted to clean activations.
    model : nn.Module, optional
        In front of which the guard stands; None where activations come from elsewhere.

    Attributes
    ----------
    layers : tuple of str
        Watched layers, the head last.
    guarantee : {"references", "tasks"}
        What p-values rest on, see :mod:`fl_shield.calibration`.
    promise_ : str
        What the false-positive budget means with so many clean inputs, in one sentence.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3)).eval()
    >>> _ = nn.init.eye_(net[0].weight), nn.init.eye_(net[2].weight)
    >>> guard = Guard.fit(net, rng.normal(size=(20, 4)).astype(np.float32))
    >>> found = guard(torch.zeros(2, 4))
    >>> found.outputs.shape, found.flags.shape
    (torch.Size([2, 3]), (2,))
    """

    def __init__(self, judge: Judge, model: nn.Module | None = None) -> None:
        self._judge = judge
        self.model = model
        self.layers = tuple(dict.fromkeys(map(module_of, judge.references.layers)))
        self.guarantee = judge.guarantee
        self.promise_ = judge.promise_
        self.fpr_budget = judge.fpr_budget
        self._seal = None if model is None else Seal(model)
        self._modules = () if model is None else tuple(model.modules())
        self._closed = False

    @classmethod
    def fit(
        cls,
        model: nn.Module,
        clean_inputs: Any,
        *,
        fpr_budget: float = 0.05,
        layers: Layers = "auto",
        detector: MetaShield | None = None,
        guarantee: Promised = "auto",
        batch_size: int = 64,
    ) -> Self:
        """Adapt to a few clean inputs of a model.

        The model runs in eval mode over the clean inputs, and every module's own mode comes back.

        Parameters
        ----------
        model : nn.Module
            Maps inputs to logits (n, n_classes), n_classes >= 2.
        clean_inputs : (m, ...) array or tensor
            Clean inputs, m >= 4 and better 20, of several predicted classes.
        fpr_budget : float
            Share of clean inputs that may be flagged, in (0, 1).
        layers : sequence of str, or "auto"
            Watched modules, the head last; ``auto`` asks
            :func:`fl_shield.stages.find_stages`.
        detector : MetaShield, optional
            Whose meta-learned weights and inner steps to use; the shipped ones by default.
        guarantee : {"auto", "references", "tasks"}
            What p-values rest on; ``auto`` takes ``references`` where their number can promise
            the budget.
        batch_size : int
            Clean inputs in one forward pass.
        """
        names = _layer_names(model, layers)
        with evaluating(model), torch.no_grad():
            batches = torch.split(_as_inputs(clean_inputs, model), batch_size)
            parts = [_run(model, names, (batch,), {})[1] for batch in batches]
        joined = Activations.join(parts)
        seen = Activations(
            layers=joined.layers, logits=joined.logits, head=head_weight(model, names[-1])
        )
        return cls(_judge_of(seen, detector, fpr_budget, guarantee), model)

    @classmethod
    def from_features(
        cls,
        activations: Activations,
        *,
        fpr_budget: float = 0.05,
        detector: MetaShield | None = None,
        guarantee: Promised = "auto",
    ) -> Self:
        """Adapt to activations of clean inputs, from any framework; then use :meth:`judge`.

        Examples
        --------
        >>> rng = np.random.default_rng(0)
        >>> rows = {"fc1": rng.normal(size=(20, 8)), "fc2": rng.normal(size=(20, 6))}
        >>> clean = Activations(layers=rows, logits=rng.normal(size=(20, 3)))
        >>> Guard.from_features(clean).judge(clean).flags.shape
        (20,)
        """
        return cls(_judge_of(activations, detector, fpr_budget, guarantee))

    def __call__(self, *args: Any, **kwargs: Any) -> Judgement:
        """Call the model, and judge each input by what its layers say meanwhile.

        ``outputs`` is the very object that the model returned. The model must be in eval mode: it
        is in that mode that clean inputs were read.
        """
        model = self._ready()
        outputs, points = _run(model, self.layers, args, kwargs)
        return self._judge.judge(points, outputs)

    def judge(self, activations: Activations) -> Judgement:
        """Judge inputs by their activations; ``outputs`` are their logits."""
        return self._judge.judge(activations, activations.logits)

    def check_model(self) -> None:
        """Compare every value of the model with those that the guard was fitted to.

        Raises
        ------
        GuardError
            Where the model has changed. Calls look for writes to its tensors only, which costs
            microseconds, and compare values when they find one.
        """
        if self._seal is not None and not self._seal.holds():
            raise GuardError(
                "the model has changed since the guard was fitted, and its verdicts would mean "
                "nothing; call Guard.fit(model, clean_inputs) again"
            )

    @property
    def n_bytes(self) -> int:
        """Memory of the guard beside the model."""
        head = self._judge.references.head
        return self._judge.n_bytes + (head.nbytes if self.model is None and head is not None else 0)

    def close(self) -> None:
        """Let go of the model; later calls are refused. No hook outlives a call in any case."""
        self.model, self._seal, self._modules, self._closed = None, None, (), True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def save(self, path: Path | str) -> None:
        """Write a safetensors file: detector, clean activations, settings, the model's fingerprint.

        The model itself is not written.
        """
        write(path, self._judge, None if self._seal is None else self._seal.digest)

    @classmethod
    def load(cls, path: Path | str, model: nn.Module | None = None) -> Self:
        """Read a file that :meth:`save` wrote, for the very model that it was fitted to.

        Parameters
        ----------
        path : Path or str
        model : nn.Module, optional
            None for a guard made :meth:`from_features`.

        Raises
        ------
        GuardError
            Where the file is no guard, or the model is not the one that it was fitted to.
        """
        saved = read(path)
        if (model is None) != (saved.fingerprint is None):
            remedy = "Guard.load(path)" if model is not None else "Guard.load(path, model)"
            raise GuardError(f"{path} was made {saved.origin}; call {remedy}")
        if model is None:
            return cls(saved.judge())
        found = fingerprint(model)
        if found != saved.fingerprint:
            raise GuardError(
                f"{path} belongs to a model with the fingerprint {saved.fingerprint:.12} and this "
                f"{type(model).__name__} has {found:.12}; load the model as it was, or call "
                "Guard.fit(model, clean_inputs)"
            )
        names = _layer_names(model, tuple(dict.fromkeys(map(module_of, saved.layers))))
        head = head_weight(model, names[-1])
        return cls(saved.judge(head), model)

    def _ready(self) -> nn.Module:
        """The model, after checks that cost microseconds."""
        if self._closed:
            raise GuardError("this guard is closed; fit or load another")
        if self.model is None:
            raise GuardError(
                "this guard was made from features and has no model to call; use judge(activations)"
            )
        if any(module.training for module in self._modules):
            raise GuardError(
                "the model is in train mode, and clean inputs were read in eval mode; "
                "call model.eval()"
            )
        if self._seal is not None and self._seal.touched():
            self.check_model()
        return self.model


def _judge_of(
    seen: Activations, detector: MetaShield | None, fpr_budget: float, guarantee: Promised
) -> Judge:
    with torch.inference_mode(False), torch.device("cpu"):
        shield = MetaShield.from_pretrained("inputs") if detector is None else detector
    return Judge(
        seen,
        shield.weights,
        fpr_budget=fpr_budget,
        guarantee=guarantee,
        n_inner_steps=shield.n_inner_steps,
    )


def _layer_names(model: nn.Module, layers: Layers) -> tuple[str, ...]:
    """Names of the layers to watch, in a model that hooks can read."""
    if isinstance(model, torch.jit.ScriptModule):
        raise GuardError(
            f"{type(model).__name__} is TorchScript, which forward hooks cannot read; give the "
            "nn.Module that it was made from, or use Guard.from_features"
        )
    if isinstance(layers, str) and layers != "auto":
        raise GuardError(f"layers must be 'auto' or a sequence of names, got {layers!r}")
    try:
        names = find_stages(model) if isinstance(layers, str) else tuple(layers)
    except ValueError as error:
        raise GuardError(str(error)) from error
    if not names or len(set(names)) != len(names):
        raise GuardError(f"layers must be distinct names, the head last, got {list(names)}")
    return names


def _as_inputs(clean_inputs: Any, model: nn.Module) -> Tensor:
    """Clean inputs (m, ...) as a tensor where the model lies."""
    if isinstance(clean_inputs, Tensor):
        inputs = clean_inputs
    else:
        inputs = torch.from_numpy(np.require(clean_inputs, requirements=("C", "W")))
    if inputs.ndim == 0 or len(inputs) < LEAST:
        shape = tuple(inputs.shape)
        raise GuardError(f"give at least {LEAST} clean inputs (m, ...), got the shape {shape}")
    first = next(chain(model.parameters(), model.buffers()), None)
    return inputs if first is None else inputs.to(first.device)


def _run(
    model: nn.Module, layers: Sequence[str], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Any, Activations]:
    """Run a model once: what it returned, and what its layers said meanwhile."""
    with watching(model, layers, pooled_ways, once=True) as seen:
        outputs = model(*args, **kwargs)
    ran = set(map(module_of, seen))
    silent = [name for name in layers if name not in ran]
    if silent:
        raise GuardError(
            f"layer {silent[0]!r} never ran in this thread's forward pass; name layers that do "
            "(layers=[...], the head last), and give the plain module rather than a compiled or "
            "parallel one"
        )
    if not isinstance(outputs, Tensor) or outputs.ndim != 2:
        got = f"shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else f"{type(outputs)}"
        raise GuardError(
            f"a guarded model must give a tensor of logits (n, n_classes), got {got}; "
            "wrap it in a module that returns logits only"
        )
    odd = [name for name, rows in seen.items() if len(rows) != len(outputs)]
    if odd:
        raise GuardError(
            f"layer {odd[0]!r} gives {len(seen[odd[0]])} rows for {len(outputs)} rows of logits; "
            "name layers with one row an input, batch first"
        )
    rows = {name: _rows(part) for name, part in in_order(seen, layers).items()}
    return outputs, Activations(layers=rows, logits=_rows(outputs.detach()))


def _rows(tensor: Tensor) -> Floats:
    rows: Floats = tensor.float().cpu().numpy()
    return rows
