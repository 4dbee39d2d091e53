"""Data sets of the Hugging Face hub by their own split, through flwr-datasets."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_shield.errors import DatasetError
from fl_shield.simulations.datasets.hub import reachable
from fl_shield.simulations.datasets.parts import PartsRequest, unavailable
from fl_shield.types import Ints, Samples


def fetch_split(name: str, repository: str, split: str, ways: str) -> Any:
    """One split of ``repository`` as a ``datasets.Dataset``, in its own order.

    Without a network this fails at once, except that ``HF_HUB_OFFLINE=1`` allows a copy in
    Hugging Face's own cache.

    Parameters
    ----------
    name : str
        Of the data set, for the error.
    repository : str
        Such as ``uoft-cs/cifar10``.
    split : str
        Such as ``train``.
    ways : str
        How else to get the data set, for the error.
    """
    hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    if not offline and not reachable(hub):
        raise unavailable(name, f"reach of {hub}", ways, "could not be fetched: no network")
    # imported here: five seconds that no other data set should pay
    from flwr_datasets import FederatedDataset

    try:
        fetched = FederatedDataset(dataset=repository, partitioners={}, shuffle=False)
        return fetched.load_split(split)
    except (OSError, ValueError, RuntimeError) as error:
        why = f"could not be fetched ({error})"
        raise unavailable(name, f"{repository} on {hub}", ways, why) from error


def column_of(rows: Any, *names: str) -> str:
    """First of ``names`` that is a column of ``rows``."""
    for name in names:
        if name in rows.column_names:
            return name
    raise DatasetError(
        f"fetched rows have columns {', '.join(rows.column_names)} and none of "
        f"{', '.join(names)}: the data set on the hub has changed, use files instead"
    )


def fetched_pictures(
    request: PartsRequest, parts: Sequence[tuple[str, Any]], side: int
) -> tuple[list[Samples], int]:
    """Drawn pictures of fetched splits and the number of classes.

    Parameters
    ----------
    request : PartsRequest
        How many, and the seed of the draw.
    parts : pairs of str and datasets.Dataset
        ``train`` and ``test`` with their rows: a picture, and an integer ``label``.
    side : int
        Every picture is resized to this edge, in pixels, by averaging over areas.
    """
    samples, n_classes = [], 0
    for part, rows in parts:
        labels = np.asarray(rows[column_of(rows, "label", "fine_label")], dtype=np.int64)
        index = request.draw(part, labels)
        drawn = rows.select(index.tolist())
        pictures = [_pixels(p, side) for p in drawn[column_of(rows, "img", "image")]]
        x = np.stack(pictures).astype(np.float32) / np.float32(255)
        samples.append(Samples(x=x, y=labels[index]))
        n_classes = max(n_classes, int(labels.max()) + 1)
    return samples, n_classes


def _pixels(picture: Any, side: int) -> NDArray[np.uint8]:
    from PIL import Image  # only photographs need it

    colour = picture.convert("RGB")
    if colour.size != (side, side):
        colour = colour.resize((side, side), Image.Resampling.BOX)
    return np.asarray(colour).transpose(2, 0, 1)


def fetched_texts(rows: Any) -> tuple[list[str], Ints]:
    """Texts and labels of fetched rows, in their order."""
    labels = np.asarray(rows[column_of(rows, "label")], dtype=np.int64)
    return list(rows[column_of(rows, "text", "sentence")]), labels
