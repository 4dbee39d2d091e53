"""What is left out of meta-training, and which victims are judged by the weights that result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fl_shield.errors import ScenarioError
from fl_shield.simulations.episodes.recording import Recording
from fl_shield.triggers import HELD_OUT_FAMILIES

Axis = Literal["trigger", "dataset", "domain", "architecture", "transfer"]
MAIN_SPLIT = "trigger-held-out"
"""Split of the tables that a comparison begins with."""

AXES: tuple[Axis, ...] = ("trigger", "dataset", "domain", "architecture", "transfer")

_FACT: Mapping[str, str] = {
    "dataset": "pool",
    "domain": "domain",
    "architecture": "architecture",
    "transfer": "domain",
}


@dataclass(frozen=True, kw_only=True)
class Split:
    """One way to part the victims.

    Attributes
    ----------
    axis : {"trigger", "dataset", "domain", "architecture", "transfer"}
    left_out : str
        The data set, domain or network that no training victim has; of triggers it is always
        ``held-out``: those families are never trained on, whatever the split. A split of the axis
        ``transfer`` names the one domain that is trained on, and judges all.
    """

    axis: Axis
    left_out: str

    @property
    def name(self) -> str:
        """Such as ``dataset-cifar10``."""
        return f"{self.axis}-{self.left_out}"

    def trains_on(self, facts: Mapping[str, Any]) -> bool:
        """Whether weights of this split may learn from a victim."""
        if facts["evaluation"] or facts.get("family") in HELD_OUT_FAMILIES:
            return False
        if facts["domain"] == "fl":
            return self.axis != "transfer" and self != WITHOUT_FEDERATIONS
        if self.axis == "trigger":
            return True
        same = bool(facts[_FACT[self.axis]] == self.left_out)
        return same == (self.axis == "transfer")

    def judges(self, facts: Mapping[str, Any]) -> bool:
        """Whether a victim is judged by weights of this split."""
        if not facts["evaluation"]:
            return False
        if self.axis == "trigger":
            return facts["family"] in HELD_OUT_FAMILIES
        if self.axis == "transfer":
            return True
        return bool(facts[_FACT[self.axis]] == self.left_out)


WITHOUT_FEDERATIONS = Split(axis="domain", left_out="fl")
"""Federations are recorded as rounds and not as victims: this split judges no victim."""


def check_axes(axes: Sequence[str]) -> None:
    """Refuse names that are no table, and none at all."""
    unknown = [axis for axis in axes if axis not in AXES]
    if unknown or not axes:
        got = repr(unknown[0]) if unknown else "none"
        raise ScenarioError(f"a table must be one of {', '.join(AXES)}, got {got}")


def all_splits(recordings: Sequence[Recording], axes: Sequence[str] = AXES) -> list[Split]:
    """Every split that the recorded victims allow, the held-out triggers first.

    Raises
    ------
    ScenarioError
        For an unknown axis.
    """
    check_axes(axes)
    found = [Split(axis="trigger", left_out="held-out")] if "trigger" in axes else []
    for axis in AXES[1:]:
        if axis in axes:
            values = dict.fromkeys(str(r.facts[_FACT[axis]]) for r in recordings)
            found += [Split(axis=axis, left_out=value) for value in values]
    return found
