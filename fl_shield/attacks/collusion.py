"""What all malicious clients of a round work out alike, without talking to each other."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch

from fl_shield.types import Arrays, AttackContext, Samples


@contextmanager
def as_one(context: AttackContext) -> Iterator[AttackContext]:
    """Give every malicious client of a round the same context.

    ``data`` and ``peers`` are the same examples in the same order (the largest peer first), the
    client is member 0, and ``rng`` is a stream that they all derive from these examples, the
    global model and the round. Torch's global generator, which dropout draws from, is seeded
    from that stream and put back afterwards.

    Parameters
    ----------
    context : AttackContext
        One client's own. ``model`` stays its scratch network.
    """
    peers = sorted(context.peers or (context.data,), key=_rank)
    seed = [context.server_round, _digest(context.global_arrays)]
    rng = np.random.default_rng([*seed, *(_rank(peer)[1] for peer in peers)])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(0, 2**63 - 1)))
        yield replace(context, data=peers[0], peers=tuple(peers), member=0, rng=rng)


def _rank(samples: Samples) -> tuple[int, int]:
    return -len(samples), _digest({"x": samples.x, "y": samples.y})


def _digest(arrays: Arrays) -> int:
    """Fingerprint of the arrays' bytes, a whole number below 2**128."""
    fingerprint = hashlib.blake2b(digest_size=16)
    for array in arrays.values():
        fingerprint.update(np.ascontiguousarray(array).data)
    return int.from_bytes(fingerprint.digest(), "big")
