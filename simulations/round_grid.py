"""A grid that shows a strategy only the clients whose turn it is, and keeps the ground truth."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fl_shield.errors import EngineError

TRUTH = "simulation-truth"
"""Record in which a simulated client tells the harness, and only the harness, what it did."""


class RoundGrid(Grid):
    """Wrap the engine's grid, so that any strategy follows a scenario's schedule.

    The strategy sees only this round's nodes; its replies come back ordered by partition (so that
    sums of floats are the same on every engine) and without the record that names the attackers.

    Parameters
    ----------
    grid : Grid
        The engine's own.
    nodes : mapping of int to int
        Node id by partition.

    Attributes
    ----------
    replies : list of Message
        This round's training replies, ordered by partition, as the strategy got them.
    truth : dict of int to RecordDict
        What each partition said about itself in this round.
    """

    def __init__(self, grid: Grid, nodes: Mapping[int, int]) -> None:
        self._grid = grid
        self._nodes = dict(nodes)
        self._partitions = {node: partition for partition, node in nodes.items()}
        self._open: tuple[int, ...] = ()
        self.replies: list[Message] = []
        self.truth: dict[int, ConfigRecord] = {}

    def open_round(self, partitions: Sequence[int]) -> None:
        """Offer these partitions, and forget the last round's replies."""
        self._open = tuple(partitions)
        self.replies, self.truth = [], {}

    def partition_of(self, reply: Message) -> int:
        """Return the partition that sent a reply."""
        return self._partitions[reply.metadata.src_node_id]

    def get_node_ids(self) -> Iterable[int]:
        """Nodes of this round."""
        return [self._nodes[partition] for partition in self._open]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send, wait, order by partition and keep back the ground truth."""
        sent = list(messages)
        if not sent:
            return []
        replies = list(self._grid.send_and_receive(sent, timeout=timeout))
        for reply in replies:
            if reply.has_error():
                raise EngineError(
                    f"a simulated client failed: {reply.error.reason}; see the log beside results"
                )
        self.replies = sorted(replies, key=self.partition_of)
        for reply in self.replies:
            self.truth[self.partition_of(reply)] = reply.content.config_records[TRUTH]
            del reply.content[TRUTH]
        return self.replies

    def set_run(self, run: Any) -> None:
        """Delegate."""
        self._grid.set_run(run)

    @property
    def run(self) -> Any:
        """Delegate."""
        return self._grid.run

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """Delegate."""
        return self._grid.create_message(*args, **kwargs)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Delegate."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Delegate."""
        return self._grid.pull_messages(message_ids)


def nodes_by_partition(grid: Grid, n_clients: int, patience: float = 120.0) -> dict[int, int]:
    """Wait for all nodes, ask each once which partition it holds, and return node ids by it.

    Raises
    ------
    EngineError
        If fewer than ``n_clients`` nodes turn up within ``patience`` seconds, or two of them claim
        the same partition.
    """
    deadline = time.monotonic() + patience
    while len(node_ids := list(grid.get_node_ids())) < n_clients:
        if time.monotonic() > deadline:
            raise EngineError(
                f"only {len(node_ids)} of {n_clients} nodes came up within {patience:g} s; "
                "see the log beside the results"
            )
        time.sleep(0.05)
    asked = [
        Message(content=RecordDict(), message_type=MessageType.QUERY, dst_node_id=node_id)
        for node_id in node_ids
    ]
    nodes: dict[int, int] = {}
    for reply in grid.send_and_receive(asked):
        if reply.has_error():
            raise EngineError(f"a node did not say which partition it holds: {reply.error.reason}")
        record = reply.content.config_records[TRUTH]
        nodes[int(str(record["partition-id"]))] = reply.metadata.src_node_id
    if sorted(nodes) != list(range(n_clients)):
        raise EngineError(f"nodes hold partitions {sorted(nodes)}, not 0 to {n_clients - 1}")
    return nodes
