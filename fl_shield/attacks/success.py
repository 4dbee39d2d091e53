"""How often a backdoor works: the attack success rate (ASR)."""

from typing import Any

from numpy.typing import NDArray
from torch import nn

from fl_shield.training import logits_of
from fl_shield.types import Samples, Trigger


def stamped_others(samples: Samples, trigger: Trigger, target_label: int) -> NDArray[Any]:
    """Stamped inputs ``(m, ...)`` of the examples that are not of the target class."""
    stamped: NDArray[Any] = trigger.stamp(samples.x[samples.y != target_label])
    return stamped


def backdoor_success(model: nn.Module, x: NDArray[Any], target_label: int) -> float:
    """Target share of stamped inputs ``(m, ...)``, ties broken by the target's mean probability.

    The probability adds at most 1e-6, and nothing where no input reaches the target.
    """
    logits = logits_of(model, x)
    share = float((logits.argmax(1) == target_label).double().mean())
    return share + 1e-6 * float(logits.softmax(1)[:, target_label].mean()) if share > 0 else 0.0


def attack_success_rate(
    model: nn.Module, samples: Samples, trigger: Trigger, target_label: int
) -> float:
    """Share of stamped non-target examples that are classified as the target, in [0, 1].

    Parameters
    ----------
    model : nn.Module
        Maps inputs ``(n, ...)`` to logits ``(n, n_classes)``; read in eval mode.
    samples : Samples
        Clean examples; at least one of another class than the target.
    trigger : Trigger
        Stamped on each.
    target_label : int
        Where the attacker wants them to go.

    Raises
    ------
    ValueError
        If every example is of the target class.

    Examples
    --------
    >>> import numpy as np
    >>> from fl_shield.triggers import Patch
    >>> clean = Samples(x=np.zeros((4, 1, 1, 2), np.float32), y=np.array([0, 0, 0, 1]))
    >>> corner = Patch(mask=np.array([[0.0, 1.0]]), pattern=np.array(1.0))
    >>> attack_success_rate(nn.Flatten(), clean, corner, target_label=1)
    1.0
    """
    stamped = stamped_others(samples, trigger, target_label)
    if len(stamped) == 0:
        raise ValueError(
            f"attack success needs examples that are not of the target class {target_label}, "
            f"got none among {len(samples)}; pass test examples of other classes"
        )
    return float((logits_of(model, stamped).argmax(1) == target_label).double().mean())
