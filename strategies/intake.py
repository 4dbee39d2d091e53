"""Who sent which reply, and whether it may be read at all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from flwr.app import Message

from fl_shield.errors import InvalidReplyError
from fl_shield.strategies.records import CheckedReply
from fl_shield.types import Action

_SUPERLINK_NODE_ID = 1
Check = Callable[[Message], CheckedReply]


@dataclass(frozen=True, kw_only=True)
class Accepted:
    """A well-formed reply of a node that was asked."""

    node_id: int
    reply: Message
    checked: CheckedReply


@dataclass(frozen=True, kw_only=True)
class Refused:
    """A node that has no vote in this round: REJECT or MISSING, and why."""

    node_id: int
    action: Action
    reason: str


@dataclass(frozen=True, kw_only=True)
class Intake:
    """One round's replies, sorted out.

    Attributes
    ----------
    accepted : tuple of Accepted
        In the order in which the nodes were asked, whatever order the replies came in.
    refused : tuple of Refused
        Asked nodes in the order they were asked, then strangers by node id.
    """

    accepted: tuple[Accepted, ...]
    refused: tuple[Refused, ...]


def take_in(sent: Sequence[Message], replies: Iterable[Message], check: Check) -> Intake:
    """Attribute each reply to a node, and check it; a node has one vote a round.

    Flower authenticates a reply's ``src_node_id``. The error reply about a vanished node comes
    from the SuperLink (node 1) and is attributed by the message it answers. Two replies of one
    node cost it the vote: which one is meant cannot be known. A reply in another node's name is
    charged to its sender alone.

    Parameters
    ----------
    sent : sequence of Message
        What the round's nodes were sent.
    replies : iterable of Message
        Read once.
    check : callable
        Decodes a reply or raises :class:`InvalidReplyError`.
    """
    asked = {m.metadata.message_id: m.metadata.dst_node_id for m in sent}
    answers: dict[int, list[tuple[Message, str]]] = {node: [] for node in asked.values()}
    strangers: dict[int, list[tuple[Message, str]]] = {}
    for reply in replies:
        node, problem = _sender(reply, asked)
        book = answers if node in answers else strangers
        book.setdefault(node, []).append((reply, problem))
    everyone = [*answers.items(), *sorted(strangers.items())]
    judged = [_judge(node, received, check) for node, received in everyone]
    return Intake(
        accepted=tuple(j for j in judged if isinstance(j, Accepted)),
        refused=tuple(j for j in judged if isinstance(j, Refused)),
    )


def _sender(reply: Message, asked: Mapping[str, int]) -> tuple[int, str]:
    """Node that a reply is charged to, and what is wrong with its address."""
    source = reply.metadata.src_node_id
    node = asked.get(reply.metadata.reply_to_message_id)
    if node is None:
        return source, "a reply to a message that this round did not send"
    if source == node or (reply.has_error() and source == _SUPERLINK_NODE_ID):
        return node, ""
    return source, f"a reply in the name of node {node}"


def _judge(node_id: int, received: list[tuple[Message, str]], check: Check) -> Accepted | Refused:
    if not received:
        return Refused(node_id=node_id, action=Action.MISSING, reason="no reply in time")
    reply, problem = received[0]
    if len(received) > 1:
        problem = f"{len(received)} replies of one node: which one is meant cannot be known"
    if not problem and reply.has_error():
        reason = f"error {reply.error.code}: {(reply.error.reason or '')[:200]!a}"
        return Refused(node_id=node_id, action=Action.MISSING, reason=reason)
    if not problem and not reply.has_content():
        problem = "a reply with neither content nor error"
    if problem:
        return Refused(node_id=node_id, action=Action.REJECT, reason=problem)
    try:
        return Accepted(node_id=node_id, reply=reply, checked=check(reply))
    except InvalidReplyError as error:
        return Refused(node_id=node_id, action=Action.REJECT, reason=str(error))
