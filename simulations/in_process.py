"""A Flower ``Grid`` that runs its clients in this very process: fast, ordered, repeatable."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    MetricRecord,
    RecordDict,
    UserConfig,
)
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

Transport = Callable[[Message, Message], Iterable[Message]]
"""From a message and its reply to what the server receives: the reply, nothing, or several."""

SUPERLINK_NODE_ID = 1
CLIENT_APP_RAISED = 2
NODE_UNAVAILABLE = 5


class InProcessGrid(Grid):
    """Runs a ``ClientApp`` once for each message, in the order the messages were pushed.

    Messages are copied on the way there and back, so that the server and its clients never
    share an object (only the immutable bytes of arrays). A node keeps its ``Context``, so its
    state lives as long as the grid.

    Parameters
    ----------
    client_app : ClientApp or callable
        What every node runs: ``(message, context) -> message``.
    node_configs : mapping of int to mapping
        Configuration of each node, by node id; see :func:`node_configs`.
    run_config : mapping, optional
        Configuration of the run, the same for all.
    on_error : {"raise", "reply"}
        What becomes of an exception in the client: it is raised here, or it becomes an error
        reply as in a real federation.
    transport : callable, optional
        Stands between the nodes and the server, to lose, double or forge replies.
    run_id : int
        Flower's run id.

    Examples
    --------
    >>> def echo(message, context):
    ...     return Message(message.content, reply_to=message)
    >>> grid = InProcessGrid(echo, node_configs(2))
    >>> [node] = list(grid.get_node_ids())[:1]
    >>> [reply] = grid.send_and_receive([Message(RecordDict(), node, "query")])
    >>> reply.metadata.src_node_id == node
    True
    """

    def __init__(
        self,
        client_app: ClientApp | Callable[[Message, Context], Message],
        node_configs: Mapping[int, UserConfig],
        *,
        run_config: UserConfig | None = None,
        on_error: Literal["raise", "reply"] = "raise",
        transport: Transport | None = None,
        run_id: int = 1,
    ) -> None:
        if on_error not in ("raise", "reply"):
            raise ValueError(f"on_error must be raise or reply, got {on_error!r}")
        _assume_identity(run_id)
        self._client_app = client_app
        self._on_error = on_error
        self._transport = transport
        self._run = Run.create_empty(run_id)
        self._contexts = {
            node_id: Context(
                run_id=run_id,
                node_id=node_id,
                node_config=dict(config),
                state=RecordDict(),
                run_config=dict(run_config or {}),
            )
            for node_id, config in node_configs.items()
        }
        self._n_messages = 0
        self._replies: dict[str, list[Message]] = {}

    def set_run(self, run: Run) -> None:
        """Set the run this grid operates in."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run this grid operates in."""
        return self._run

    def context(self, node_id: int) -> Context:
        """Return the persistent context of one node."""
        return self._contexts[node_id]

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Create a message from the server to one node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the node ids, in the order of the constructor's mapping."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Give each message an id, run its client, and return the ids."""
        ids = []
        for message in messages:
            self._n_messages += 1
            message_id = f"{self._run.run_id}-{self._n_messages}"
            _set_metadata(message, message_id=message_id)
            self._replies[message_id] = [_copied(r) for r in self._answers(_copied(message))]
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies to the messages with these ids, in that order, once."""
        return [reply for i in message_ids for reply in self._replies.pop(i, [])]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Run the clients of all messages and return their replies; ``timeout`` is not used."""
        return self.pull_messages(self.push_messages(messages))

    def _answers(self, message: Message) -> Iterable[Message]:
        reply = self._answer(message)
        _set_metadata(reply, message_id=f"{message.metadata.message_id}-reply")
        return [reply] if self._transport is None else self._transport(message, reply)

    def _answer(self, message: Message) -> Message:
        context = self._contexts.get(message.metadata.dst_node_id)
        if context is None:
            return unavailable(message)
        try:
            return self._client_app(_copied(message), context)
        except Exception as error:
            if self._on_error == "raise":
                raise
            reason = f"{type(error).__name__}: {error}"
            return Message(Error(CLIENT_APP_RAISED, reason), reply_to=message)


def node_configs(n_nodes: int, seed: int = 0) -> dict[int, UserConfig]:
    """Configurations of ``n_nodes`` nodes: large ids as Flower draws them, but from a seed.

    Examples
    --------
    >>> [config["partition-id"] for config in node_configs(3).values()]
    [0, 1, 2]
    """
    draw = random.Random(seed)
    ids: dict[int, None] = {}
    while len(ids) < n_nodes:
        ids.setdefault(draw.randrange(2**32, 2**63))
    return {
        node_id: {"partition-id": i, "num-partitions": n_nodes} for i, node_id in enumerate(ids)
    }


def unavailable(message: Message) -> Message:
    """Error reply that the SuperLink sends in place of a node that vanished."""
    reply = Message(Error(NODE_UNAVAILABLE, "node unavailable"), reply_to=message)
    _set_metadata(reply, src_node_id=SUPERLINK_NODE_ID)
    return reply


def copied_content(content: RecordDict) -> RecordDict:
    """Deep copy of a message's content; only the immutable bytes of arrays are shared."""
    return RecordDict({name: _copied_record(record) for name, record in content.items()})


def _copied_record(
    record: ArrayRecord | MetricRecord | ConfigRecord,
) -> ArrayRecord | MetricRecord | ConfigRecord:
    if isinstance(record, ArrayRecord):
        return ArrayRecord(
            {n: Array(a.dtype, tuple(a.shape), a.stype, bytes(a.data)) for n, a in record.items()}
        )
    if isinstance(record, MetricRecord):
        return MetricRecord({name: copy.copy(value) for name, value in record.items()})
    return ConfigRecord({name: copy.copy(value) for name, value in record.items()})


def _copied(message: Message) -> Message:
    twin = copy.copy(message)
    _set_metadata(twin)
    if twin.has_content():
        twin.content = copied_content(twin.content)
    return twin


def _assume_identity(run_id: int) -> None:
    """Be the server of a run: what a SuperLink tells a ServerApp's process at its start.

    Not public in Flower 1.41, and without it ``Message(...)`` refuses to be built.
    """
    TaskIdentity.run_id = run_id
    TaskIdentity.node_id = SUPERLINK_NODE_ID
    TaskIdentity.task_id = 1


def _set_metadata(message: Message, **values: str | int) -> None:
    """Write metadata that only a SuperLink writes, on a copy that this message alone holds.

    Not public in Flower 1.41: ``Metadata`` keeps ``message_id`` and ``src_node_id`` read-only.
    """
    metadata = copy.copy(message.metadata)
    metadata.__dict__.update({f"_{name}": value for name, value in values.items()})
    message.__dict__["_metadata"] = metadata
