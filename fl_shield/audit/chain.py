"""The hash chain: what makes a later edit, deletion or reorder of audit rows visible.

The hash of row ``i`` is ``H(hash of row i - 1 || canonical JSON of row i)``, where H is SHA-256,
or HMAC-SHA256 under a key. Whoever changes a row must forge the hash of every later one: without
a key that is easy work, and it changes the head, so keep the head elsewhere (``results.json``
holds it); with a key it cannot be done without the key. A chain cannot know what was cut off its
end: only the head says so.

References
----------
B. Schneier and J. Kelsey, "Secure audit logs to support computer forensics", ACM TISSEC 2(2),
1999, section 4. H. Krawczyk et al., "HMAC", RFC 2104.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

GENESIS = "0" * 64
"""What stands before the first row."""


@dataclass(frozen=True, kw_only=True)
class Link:
    """One row in the chain: its table, its columns and the hash stored with it."""

    table: str
    values: Mapping[str, Any]
    hash: str

    @property
    def seq(self) -> Any:
        """Place in the chain as stored: an int, unless somebody tampered with it."""
        return self.values["seq"]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Where a chain first breaks, and how.

    Attributes
    ----------
    seq : int
        Place in the chain, from 1, that does not hold what was written.
    problem : str
        What is wrong there, in words.
    run_id, server_round, client_id : optional
        What the row found there is about.
    """

    seq: int
    problem: str
    run_id: str | None = None
    server_round: int | None = None
    client_id: str | None = None

    def __str__(self) -> str:
        parts = [f"row {self.seq}"]
        parts += [f"run {self.run_id}"] if self.run_id is not None else []
        parts += [f"round {self.server_round}"] if self.server_round is not None else []
        parts += [f"client {self.client_id}"] if self.client_id is not None else []
        return f"{', '.join(parts)}: {self.problem}"


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What a check of the chain found.

    Attributes
    ----------
    n_rows : int
        Rows that hold, counted from the first.
    head : str
        Hash of the last row that holds, 64 hex digits.
    fault : Fault, optional
        The first break; None for a chain that holds.
    keyed : bool
        Whether the hashes are HMACs under a key.
    n_after_head : int, optional
        Rows written after the head that was asked for; None where none was.
    """

    n_rows: int
    head: str
    fault: Fault | None = None
    keyed: bool = False
    n_after_head: int | None = None

    @property
    def ok(self) -> bool:
        """True where nothing is wrong."""
        return self.fault is None


def key_id(key: bytes | None) -> str:
    """Sixteen hex digits that name a key without giving it away; empty without one."""
    if key is None:
        return ""
    return hmac.new(key, b"fl_shield audit key", hashlib.sha256).hexdigest()[:16]


def canonical(table: str, values: Mapping[str, Any]) -> bytes:
    r"""One row as bytes: JSON with sorted keys, ASCII, floats by their shortest repr.

    Examples
    --------
    >>> canonical("t", {"b": 0.1, "a": "é"})
    b'["t",{"a":"\\u00e9","b":0.1}]'
    """
    text = json.dumps(
        [table, dict(values)],
        sort_keys=True,
        separators=(",", ":"),
        ensure_ascii=True,
        default=repr,
    )
    return text.encode("ascii")


def digest(previous: str, table: str, values: Mapping[str, Any], key: bytes | None = None) -> str:
    """Hash of one row, 64 hex digits.

    Parameters
    ----------
    previous : str
        Hash of the row before, or :data:`GENESIS`.
    table : str
        Where the row stands.
    values : mapping of str to int, float, str or None
        All columns but the hash.
    key : bytes, optional
        Makes it an HMAC.

    Examples
    --------
    >>> digest(GENESIS, "t", {"seq": 1})[:8]
    '67705545'
    >>> digest(GENESIS, "t", {"seq": 1}, key=b"k")[:8] == digest(GENESIS, "t", {"seq": 1})[:8]
    False
    """
    message = previous.encode("utf-8", "surrogatepass") + b"\n" + canonical(table, values)
    if key is None:
        return hashlib.sha256(message).hexdigest()
    return hmac.new(key, message, hashlib.sha256).hexdigest()


def link_fault(link: Link, seq: int, previous: str, key: bytes | None) -> Fault | None:
    """What is wrong with the row that should stand at place ``seq``; None where nothing is."""
    if link.seq != seq or isinstance(link.seq, bool) or not isinstance(link.seq, int):
        return _about(link, seq, f"expected row {seq} here, found row {link.seq}")
    if not hmac.compare_digest(
        str(link.hash).encode("utf-8", "replace"), _expected(link, previous, key)
    ):
        hint = "" if key is None or seq > 1 else " (or the key is not the one it was written with)"
        return _about(link, seq, f"its hash does not match: it was changed after writing{hint}")
    return None


def walk(
    links: Iterable[Link], *, key: bytes | None = None, head: str | None = None
) -> Verification:
    """Check a chain from its first row.

    Parameters
    ----------
    links : iterable of Link
        All rows, in the order of ``seq``; a generator is welcome.
    key : bytes, optional
        The key it was written with.
    head : str, optional
        A hash that must be among the rows, as noted when it was the last one.

    Examples
    --------
    >>> row = {"seq": 1, "client_id": "7"}
    >>> good = Link(table="t", values=row, hash=digest(GENESIS, "t", row))
    >>> walk([good]).ok
    True
    >>> print(walk([replace(good, values={"seq": 1, "client_id": "8"})]).fault)
    row 1, client 8: its hash does not match: it was changed after writing
    """
    previous, n_rows, keyed = GENESIS, 0, key is not None
    found_at = 0 if head == GENESIS else None
    for link in links:
        fault = link_fault(link, n_rows + 1, previous, key)
        if fault is not None:
            return Verification(n_rows=n_rows, head=previous, fault=fault, keyed=keyed)
        previous, n_rows = link.hash, n_rows + 1
        if link.hash == head:
            found_at = n_rows
    found = Verification(n_rows=n_rows, head=previous, keyed=keyed)
    if head is None:
        return found
    return _cut(found, head) if found_at is None else replace(found, n_after_head=n_rows - found_at)


def _cut(found: Verification, head: str) -> Verification:
    problem = (
        f"the head {head} is not in the chain, which ends after {found.n_rows} rows with "
        f"{found.head}: rows were cut off its end, or it was written anew"
    )
    fault = Fault(seq=found.n_rows + 1, problem=problem)
    return replace(found, fault=fault)


def _expected(link: Link, previous: str, key: bytes | None) -> bytes:
    return digest(previous, link.table, link.values, key).encode("ascii")


def _about(link: Link, seq: int, problem: str) -> Fault:
    values = link.values
    return Fault(
        seq=seq,
        problem=problem,
        run_id=values.get("run_id"),
        server_round=values.get("server_round"),
        client_id=values.get("client_id"),
    )
