"""Scripted players: pure rules that tell the right action from what just happened.

Every rule reads ``facts`` (frames, k), the newest last, and returns a label, not a button of the
environment.
"""

from __future__ import annotations

import math

from fl_shield.types import Floats

LEFT, RIGHT = 0, 1
BACK, COAST, FORWARD = 0, 1, 2
STAY, UP, DOWN = 0, 1, 2

ACROBOT_ENOUGH = 15.0
"""Energy in joules above which the acrobot coasts; upright at rest it has 19.6."""

HILL = 0.0025 / 3
"""Mountain car: height of the hill's energy, gravity over three (Gymnasium's constants)."""

CAR_ENOUGH = HILL * math.sin(3 * 0.5) + 5e-5
"""Energy of the car at rest on the goal, and a little more."""

PONG_FLOOR, PONG_PADDLE_X, PADDLE, BALL = 156, 138, 16, 4
"""Pong, in pixels of the field: lowest ball, where the paddle meets it, heights of the two."""

PONG_BAND = 10.0
"""Half of the 21 pixels that one push moves the paddle: a smaller error is left alone."""


def balance(facts: Floats) -> int:
    """Cart-pole: push to where the pole falls, slowly steering the cart to the middle.

    Parameters
    ----------
    facts : (frames, 4) float array
        Position (m), velocity (m/s), angle (rad), angular velocity (rad/s).

    References
    ----------
    A. Barto, R. Sutton, C. Anderson, "Neuronlike adaptive elements that can solve difficult
    learning control problems", IEEE SMC 13, 1983 (the task); the rule is a linear feedback.

    Examples
    --------
    >>> import numpy as np
    >>> balance(np.array([[0.0, 0.0, 0.1, 0.0]])), balance(np.array([[0.0, 0.0, -0.1, 0.0]]))
    (1, 0)
    """
    x, speed, angle, turn = (float(v) for v in facts[-1])
    return RIGHT if angle + 0.5 * turn + 0.05 * x + 0.1 * speed > 0 else LEFT


def pump(facts: Floats) -> int:
    """Acrobot: torque against the first link's turn until the energy is enough, then coast.

    Parameters
    ----------
    facts : (frames, 6) float array
        Cosine and sine of both angles, both angular velocities (rad/s).

    References
    ----------
    M. Spong, "The swing up control problem for the acrobot", IEEE Control Systems 15, 1995 (energy
    pumping); R. Sutton, "Generalization in reinforcement learning", NeurIPS 1996 (the task).

    Examples
    --------
    >>> import numpy as np
    >>> pump(np.array([[1, 0, 1, 0, 0.5, 0]])), pump(np.array([[1, 0, 1, 0, -0.5, 0]]))
    (0, 2)
    """
    if acrobot_energy(facts[-1]) > ACROBOT_ENOUGH:
        return COAST
    return BACK if facts[-1][4] > 0 else FORWARD


def acrobot_energy(state: Floats) -> float:
    """Kinetic and potential energy of Gymnasium's acrobot in joules, -19.6 hanging at rest.

    Both links: 1 kg, 1 m, inertia 1 kg m², centre in the middle, gravity 9.8 m/s².

    Parameters
    ----------
    state : (6,) float array
        Cosine and sine of both angles, both angular velocities (rad/s).

    Examples
    --------
    >>> import numpy as np
    >>> round(acrobot_energy(np.array([1, 0, 1, 0, 0, 0])), 6)
    -19.6
    """
    cos_1, sin_1, cos_2, sin_2, turn_1, turn_2 = (float(v) for v in state)
    cos_both = cos_1 * cos_2 - sin_1 * sin_2
    kinetic = (
        0.5 * (3.5 + cos_2) * turn_1**2
        + (1.25 + 0.5 * cos_2) * turn_1 * turn_2
        + 0.5 * 1.25 * turn_2**2
    )
    return kinetic - 9.8 * (1.5 * cos_1 + 0.5 * cos_both)


def climb(facts: Floats) -> int:
    """Mountain car: push along the velocity; coast once the energy carries it to the goal.

    Parameters
    ----------
    facts : (frames, 2) float array
        Position and velocity, in Gymnasium's units.

    References
    ----------
    A. Moore, "Efficient Memory-based Learning for Robot Control", Cambridge, 1990 (the task).

    Examples
    --------
    >>> import numpy as np
    >>> [climb(np.array([[x, v]])) for x, v in ((-0.5, 0.01), (-0.5, -0.01), (-0.5, 0.07))]
    [2, 0, 1]
    """
    x, speed = (float(v) for v in facts[-1])
    if speed > 0 and speed**2 / 2 + HILL * math.sin(3 * x) >= CAR_ENOUGH:
        return COAST
    return FORWARD if speed >= 0 else BACK


def track(facts: Floats) -> int:
    """Pong: bring the paddle to where the ball will arrive; stay when its own glide suffices.

    Parameters
    ----------
    facts : (frames, 3) float array
        Ball x, ball y and the own paddle's top in pixels of the field (row 0 is its upper edge).

    Examples
    --------
    >>> import numpy as np
    >>> [track(np.array([[60, 50, p], [64, 50, p]])) for p in (44, 120, 0)]
    [0, 1, 2]
    """
    (x_before, y_before, top_before), (x, y, top) = facts[-2].tolist(), facts[-1].tolist()
    right, down, glide = x - x_before, y - y_before, top - top_before
    arrives = bounce(y + down * (PONG_PADDLE_X - x) / right) if right > 0 else y
    # after the last push the paddle goes on by 0.6 of its last step and 4 pixels
    stops = top + (math.copysign(0.6 * abs(glide) + 4, glide) if abs(glide) > 2 else 0.0)
    error = (arrives + BALL / 2) - (stops + PADDLE / 2)
    if abs(error) <= PONG_BAND:
        return STAY
    return UP if error < 0 else DOWN


def bounce(y: float) -> float:
    """Where a ball that flies on without walls, at ``y``, is between the walls.

    Examples
    --------
    >>> bounce(-10.0), bounce(166.0), bounce(322.0)
    (10.0, 146.0, 10.0)
    """
    folded = y % (2 * PONG_FLOOR)
    return folded if folded <= PONG_FLOOR else 2 * PONG_FLOOR - folded
