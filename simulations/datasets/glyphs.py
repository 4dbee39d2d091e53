"""Generated stand-in for FEMNIST: 62 glyphs in matplotlib's own fonts, one style per writer.

A writer is a font, a slant, a stroke, a size, a tilt and a quality of paper; each picture then
wobbles a little around that style. Dark strokes on white paper, as in FEMNIST.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import PathPatch
from matplotlib.textpath import TextPath
from matplotlib.transforms import Affine2D
from numpy.typing import NDArray
from scipy import ndimage

from fl_shield.simulations.datasets.corpus import Corpus, Owner, Request
from fl_shield.types import Floats, Ints, Samples

GLYPHS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
"""Glyph by label, in FEMNIST's order."""

FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSansMono",
    "DejaVuSerif",
    "DejaVuSerif-Italic",
    "DejaVuSerif-Bold",
    "STIXGeneral",
    "STIXGeneralItalic",
    "STIXGeneralBol",
    "cmr10",
    "cmss10",
    "cmtt10",
    "cmmi10",
)
"""Files of matplotlib's ``mpl-data/fonts/ttf``."""

SIDE = 28
MASTER_SIDE = 56
DIGIT_SHARE = 0.6
"""FEMNIST writers wrote mostly digits; capitals and small letters share the rest."""


@dataclass(frozen=True, kw_only=True)
class Hand:
    """One writer's style.

    Attributes
    ----------
    font : str
        One of :data:`FONTS`.
    slant, tilt : float
        Shear, and rotation in radians.
    width, height : float
        Size relative to the glyph's own.
    stroke : float
        Added darkness before the threshold: positive = thick pen.
    paper, ink : float
        Grey of paper and ink in [0, 1].
    noise : float
        Standard deviation of the grain.
    """

    font: str
    slant: float
    tilt: float
    width: float
    height: float
    stroke: float
    paper: float
    ink: float
    noise: float


def draw_hand(rng: np.random.Generator) -> Hand:
    """Draw one writer's style."""
    return Hand(
        font=str(rng.choice(FONTS)),
        slant=rng.uniform(-0.3, 0.35),
        tilt=rng.normal(0, 0.1),
        width=rng.uniform(0.7, 1.0),
        height=rng.uniform(0.75, 1.0),
        stroke=rng.uniform(-0.12, 0.2),
        paper=rng.uniform(0.95, 1.0),
        ink=rng.uniform(0.0, 0.2),
        noise=rng.uniform(0.0, 0.03),
    )


def read_glyphs(request: Request) -> Corpus:
    """Generated glyphs by writer: float32 images (n, 1, 28, 28) in [0, 1], 1 = white paper.

    Parameters
    ----------
    request : Request
        Number of writers and seed; nothing is read.

    Examples
    --------
    >>> read_glyphs(Request(n_owners=1)).owners[0].train.x.shape[1:]
    (1, 28, 28)
    """
    owners = []
    for i in range(request.n_owners):
        rng = request.rng(i)
        hand = draw_hand(rng)
        n = int(np.clip(rng.lognormal(5.0, 0.4), 40, 356))
        y = _labels(n, rng)
        everything = Samples(x=write(hand, y, rng), y=y)
        held = rng.permutation(n) < max(1, n // 10)
        train, test = everything.take(~held), everything.take(held)
        owners.append(Owner(name=f"writer-{i:03d}", train=train, test=test))
    return Corpus(name="glyphs", kind="image", n_classes=len(GLYPHS), owners=tuple(owners))


def _labels(n: int, rng: np.random.Generator) -> Ints:
    digits = rng.random(n) < DIGIT_SHARE
    labels: Ints = np.where(digits, rng.integers(0, 10, n), rng.integers(10, len(GLYPHS), n))
    return labels


def write(hand: Hand, labels: Ints, rng: np.random.Generator) -> NDArray[np.float32]:
    """Pictures of glyphs in one hand, (n, 1, 28, 28) in [0, 1].

    Parameters
    ----------
    hand : Hand
        The writer's style.
    labels : (n,) int array
        What to write, indices into :data:`GLYPHS`.
    rng : numpy.random.Generator
        Draws the wobble of each picture and the grain of the paper.
    """
    n = len(labels)
    masters = torch.from_numpy(master(hand.font)[labels][:, None])
    theta = torch.from_numpy(_affine(hand, n, rng).astype(np.float32))
    grid = torch.nn.functional.affine_grid(theta, [n, 1, SIDE, SIDE], align_corners=False)
    grid = grid + torch.from_numpy(_wobble(n, rng))
    warped = torch.nn.functional.grid_sample(masters, grid, align_corners=False).numpy()
    # a soft threshold on the blurred stroke makes the pen thick or thin
    soft = ndimage.gaussian_filter(warped, sigma=(0, 0, 0.6, 0.6))
    strength = 1 / (1 + np.exp(-12 * (soft - 0.4 + hand.stroke)))
    picture = hand.paper - (hand.paper - hand.ink) * strength
    picture = picture + hand.noise * rng.standard_normal(picture.shape)
    pictures: NDArray[np.float32] = np.clip(picture, 0, 1).astype(np.float32)
    return pictures


def _affine(hand: Hand, n: int, rng: np.random.Generator) -> Floats:
    """Maps from picture to master coordinates, (n, 2, 3)."""
    tilt = hand.tilt + rng.normal(0, 0.06, n)
    slant = hand.slant + rng.normal(0, 0.05, n)
    width = hand.width * rng.normal(1, 0.05, n)
    height = hand.height * rng.normal(1, 0.05, n)
    cos, sin = np.cos(tilt), np.sin(tilt)
    rows = [
        [(cos - slant * sin) / width, (sin + slant * cos) / width, rng.normal(0, 0.06, n)],
        [-sin / height, cos / height, rng.normal(0, 0.06, n)],
    ]
    return np.moveaxis(np.array(rows), -1, 0)


def _wobble(n: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Smooth displacements of the pen, (n, 28, 28, 2) in grid units."""
    coarse = torch.from_numpy(rng.normal(0, 0.05, (n, 2, 5, 5)).astype(np.float32))
    smooth = torch.nn.functional.interpolate(
        coarse, size=(SIDE, SIDE), mode="bicubic", align_corners=True
    )
    moved: NDArray[np.float32] = smooth.permute(0, 2, 3, 1).contiguous().numpy()
    return moved


@cache
def master(font: str) -> NDArray[np.float32]:
    """All 62 glyphs of one font, centred, ink = 1 on 0, (62, 56, 56) float32.

    Parameters
    ----------
    font : str
        One of :data:`FONTS`.

    Examples
    --------
    >>> master("DejaVuSans").shape
    (62, 56, 56)
    """
    file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{font}.ttf"
    properties = FontProperties(fname=file)
    side = MASTER_SIDE
    figure = Figure(figsize=(side, side * len(GLYPHS)), dpi=1)
    canvas = FigureCanvasAgg(figure)
    for row, glyph in enumerate(GLYPHS):
        path = TextPath((0, 0), glyph, size=0.62 * side, prop=properties)
        box = path.get_extents()
        centre = (side / 2 - (box.x0 + box.x1) / 2, (row + 0.5) * side - (box.y0 + box.y1) / 2)
        moved = path.transformed(Affine2D().translate(*centre))
        figure.add_artist(PathPatch(moved, color="black", lw=0, transform=None))
    canvas.draw()  # type: ignore[no-untyped-call]
    grey = np.asarray(canvas.buffer_rgba())[..., 0]  # type: ignore[no-untyped-call]
    # rows count upwards in matplotlib
    glyphs = grey.reshape(len(GLYPHS), side, side)[::-1]
    return (1 - glyphs / 255).astype(np.float32)
