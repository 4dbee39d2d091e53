"""Cart-pole as a data set: which way a teacher pushes the cart in states that it met."""

from __future__ import annotations

from fl_shield.simulations.datasets.behaviour import control_parts
from fl_shield.simulations.datasets.corpus import Corpus, Request, common_pool


def read_cartpole(request: Request) -> Corpus:
    """States of played episodes as one pool, float32 (n, 4, 4), labelled with a push: 0 or 1.

    Parameters
    ----------
    request : Request
        The seed plays the episodes, see :func:`.behaviour.control_parts`; no file is read.
    """
    return common_pool("cartpole", "state", control_parts("cartpole", request.parts))
