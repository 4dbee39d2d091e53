"""What a scenario needs in memory: its data, its trigger, its network, and how it is judged."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from torch import nn

from fl_shield.errors import ScenarioError
from fl_shield.simulations.datasets import FederatedData, load
from fl_shield.simulations.scenario import Scenario
from fl_shield.simulations.victims import build_model
from fl_shield.training import accuracy, logits_of, set_arrays
from fl_shield.triggers import default_trigger
from fl_shield.types import Arrays, Samples, Trigger


@dataclass(frozen=True, kw_only=True)
class FederatedTask:
    """Data and trigger of one scenario.

    Attributes
    ----------
    scenario : Scenario
        What it was made from.
    data : FederatedData
        Client, server and test examples.
    trigger : Trigger
        The backdoor that all malicious clients share.
    stamped : Samples
        Test examples without the target class, stamped with the trigger.
    """

    scenario: Scenario
    data: FederatedData
    trigger: Trigger
    stamped: Samples

    def new_model(self) -> nn.Module:
        """Return the network with the initial weights of the scenario's seed."""
        return build_model(self.scenario.model, self.data, self.scenario.seed)

    def stamped_with(self, trigger: Trigger) -> Samples:
        """Test examples without the target class, stamped with a trigger."""
        others = self.data.test.take(self.data.test.y != self.scenario.target_label)
        return Samples(x=trigger.stamp(others.x), y=others.y)

    def evaluate(
        self, model: nn.Module, arrays: Arrays, stamped: Samples | None = None
    ) -> tuple[float, float]:
        """Main-task accuracy and attack success rate of a global model, both in [0, 1].

        Success is counted on ``stamped``, where attackers have shaped a trigger of their own.
        """
        set_arrays(model, arrays)
        inputs = (stamped or self.stamped).x
        hit = logits_of(model, inputs).argmax(1).numpy() == self.scenario.target_label
        return accuracy(model, self.data.test), float(hit.mean())


def open_task(scenario: Scenario) -> FederatedTask:
    """Load data and make the trigger; the data of one federation is loaded once a process.

    Raises
    ------
    DatasetError
        If the data set is missing, unreadable or too small.
    ScenarioError
        If the data set has no class ``target_label``, or the trigger or the network does not fit.
    """
    data = _load(
        scenario.dataset,
        scenario.n_clients,
        scenario.partition,
        scenario.alpha,
        scenario.data_dir,
        scenario.n_clean,
        scenario.n_test,
        scenario.seed,
    )
    if scenario.target_label >= data.n_classes:
        raise ScenarioError(
            f"target_label {scenario.target_label} is no class of {scenario.dataset}; choose one "
            f"of 0 to {data.n_classes - 1}"
        )
    try:
        trigger = default_trigger(scenario.trigger, data.test.x[:200])
    except ValueError as error:
        raise ScenarioError(
            f"trigger {scenario.trigger!r} on {scenario.dataset}: {error}"
        ) from error
    others = data.test.take(data.test.y != scenario.target_label)
    stamped = Samples(x=trigger.stamp(others.x), y=others.y)
    task = FederatedTask(scenario=scenario, data=data, trigger=trigger, stamped=stamped)
    task.new_model()
    return task


@lru_cache(maxsize=2)
def _load(
    name: str,
    n_clients: int,
    partition: str,
    alpha: float,
    data_dir: str | None,
    n_clean: int,
    n_test: int,
    seed: int,
) -> FederatedData:
    return load(
        name,
        n_clients=n_clients,
        partition=partition,
        alpha=alpha,
        data_dir=data_dir,
        n_clean=n_clean,
        n_test=n_test,
        seed=seed,
    )
