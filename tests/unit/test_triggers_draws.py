"""The draws that published federations depend on stay what they were, bit for bit."""

import hashlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fl_shield.triggers import draw_trigger


def _like(family: str) -> NDArray[Any]:
    """Bright bars on black, or tokens of which small ids are frequent; no random numbers."""
    rows = np.arange(12)[:, None]
    if family == "word":
        return np.asarray((rows * np.arange(1, 17) ** 2) % 11, np.int64)
    x = np.zeros((12, 1, 12, 12), np.float32)
    for row, image in enumerate(x):
        image[0, 2:-2, 3 + row % 6 : 5 + row % 6] = 0.75
    return x


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("patch", "0578af1a90c5b010"),
        ("polygon", "f22aacf8eb0dbbb3"),
        ("blended", "72dcfa4d0546ab05"),
        ("word", "d51f70cf8bd30938"),
    ],
)
def test_the_first_families_are_drawn_as_they_always_were(family: str, expected: str) -> None:
    x = _like(family)
    digest = hashlib.sha256()
    for seed in range(8):
        rng = np.random.default_rng(seed)
        digest.update(draw_trigger(family, x, rng).stamp(x).tobytes())
        digest.update(rng.integers(2**32, size=2).tobytes())
    assert digest.hexdigest()[:16] == expected
