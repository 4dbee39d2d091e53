"""load(): every embedded data set, seeds, disjointness, errors."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fl_shield.errors import DatasetError
from fl_shield.simulations.datasets import (
    DATASETS,
    DEFAULT_CLIENTS,
    EXAMPLES_PER_CLIENT,
    fingerprint,
    load,
)
from fl_shield.simulations.datasets.assembly import class_spread
from fl_shield.simulations.datasets.glyphs import FONTS, draw_hand, master, write
from fl_shield.simulations.datasets.shakespeare import VOCABULARY, encode, windows
from fl_shield.simulations.scenario import OWNERLESS_DATASETS, STATE_DATASETS, TEXT_DATASETS

EMBEDDED = ["digits", "glyphs", "roles"]


@pytest.mark.parametrize("name", EMBEDDED)
def test_same_seed_same_arrays_other_seed_other_arrays(name: str) -> None:
    prints = [fingerprint(load(name, n_clients=4, seed=seed)) for seed in (0, 0, 1)]
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize("name", EMBEDDED)
def test_no_example_is_in_two_places(name: str) -> None:
    data = load(name, n_clients=4)
    rows = [x.tobytes() for part in (*data.clients, data.test, data.clean) for x in part.x]
    assert len(set(rows)) == len(rows)
    assert len(data.clean) == 20


@pytest.mark.parametrize("name", EMBEDDED)
def test_global_generators_stay_as_they_were(name: str) -> None:
    def states() -> list[str]:
        return [str(random.getstate()), str(np.random.get_state()), str(torch.get_rng_state())]  # noqa: NPY002

    before = states()
    load(name, n_clients=2)
    assert states() == before


def test_tables_agree() -> None:
    assert set(DATASETS) == set(DEFAULT_CLIENTS)
    for some in (TEXT_DATASETS, STATE_DATASETS, OWNERLESS_DATASETS, EXAMPLES_PER_CLIENT):
        assert set(some) < set(DATASETS)


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(DatasetError, match="digits, glyphs, femnist, shakespeare, roles"):
        load("mnist")
    with pytest.raises(DatasetError, match="natural, dirichlet, iid, got 'sorted'"):
        load("digits", partition="sorted")


@pytest.mark.parametrize("name", ["femnist", "shakespeare"])
def test_a_folder_without_data_names_three_ways(tmp_path: Path, name: str) -> None:
    with pytest.raises(DatasetError, match=f"{name} was not found in") as caught:
        load(name, data_dir=tmp_path)
    for way in ("--data-dir", "npz", "flwr-datasets"):
        assert way in str(caught.value)
    with pytest.raises(DatasetError, match="does not exist: check --data-dir"):
        load(name, data_dir=tmp_path / "absent")


def test_digits_have_no_owners() -> None:
    with pytest.raises(DatasetError, match="digits has none: use --partition dirichlet"):
        load("digits", partition="natural")


@pytest.mark.parametrize(
    ("option", "value"), [("n_clean", 0), ("n_test", 0), ("max_per_client", 0), ("n_clients", -1)]
)
def test_sizes_must_be_positive(option: str, value: int) -> None:
    sizes: dict[str, Any] = {
        "n_clean": 20,
        "n_test": 10,
        "max_per_client": 10,
        "n_clients": 5,
        option: value,
    }
    with pytest.raises(DatasetError, match=f"{option} must be >= 1, got {value}"):
        load("digits", **sizes)


def test_more_clean_examples_than_the_pool_can_spare() -> None:
    with pytest.raises(DatasetError, match="1000 clean examples cannot be cut out of 1438"):
        load("digits", n_clean=1000)


def test_digits_clean_examples_hold_each_class_twice() -> None:
    data = load("digits", n_clean=20)
    assert np.bincount(data.clean.y).tolist() == [2] * 10
    # scikit-learn's 1,797 images, all of them somewhere
    assert sum(map(len, data.clients)) + len(data.test) + len(data.clean) == 1797


def test_class_spread_takes_rare_classes_first_and_then_what_is_left() -> None:
    labels = np.array([0] * 10 + [1, 2, 2])
    picked = labels[class_spread(labels, 7, np.random.default_rng(0))]
    assert sorted(picked.tolist()) == [0, 0, 0, 0, 1, 2, 2]


def test_glyphs_look_like_femnist() -> None:
    data = load("glyphs", n_clients=5)
    x = np.concatenate([client.x for client in data.clients])
    assert data.input_shape == (1, 28, 28)
    # paper is bright and most of the picture; every picture has dark ink
    assert np.median(x) > 0.9
    assert (x.min(axis=(1, 2, 3)) < 0.5).all()
    sizes = [len(client) for client in data.clients]
    assert len(set(sizes)) > 1
    assert min(sizes) >= 20


def test_glyph_writers_differ_more_than_their_own_pictures() -> None:
    labels = np.full(20, 33)
    hands = [draw_hand(np.random.default_rng(seed)) for seed in range(6)]
    pictures = np.stack([write(h, labels, np.random.default_rng(0))[:, 0] for h in hands])
    within = pictures.var(axis=1).mean()
    between = pictures.mean(axis=1).var(axis=0).mean()
    # means of 20 pictures by one hand would differ by a twentieth of the variance within
    assert between > 3 * within / 20


@pytest.mark.parametrize("font", FONTS)
def test_every_font_draws_all_glyphs(font: str) -> None:
    glyphs = master(font)
    assert (glyphs.max(axis=(1, 2)) > 0.5).all()
    assert (glyphs[:, [0, -1], :] == 0).all()
    # some fonts draw I and l alike
    assert len({glyph.tobytes() for glyph in glyphs}) >= 61


def test_roles_have_habits() -> None:
    data = load("roles", n_clients=2)
    texts = ["".join(data.vocabulary[t] for t in client.x[0]) for client in data.clients]
    assert data.input_shape == (80,)
    assert texts[0] != texts[1]
    assert set("".join(texts)) <= set(VOCABULARY)


def test_vocabulary_is_leafs() -> None:
    assert len(VOCABULARY) == len(set(VOCABULARY)) == 80
    # positions that LEAF's find() gives
    assert [VOCABULARY.index(c) for c in "\n 0Aaz}"] == [0, 1, 11, 25, 53, 78, 79]


def test_windows_encode_each_character_and_blank_strangers() -> None:
    samples = windows(["a" * 79 + "é"], ["世"])
    assert samples.x.tolist() == [[53] * 79 + [1]]
    assert samples.y.tolist() == [1]
    assert "".join(VOCABULARY[t] for t in encode("To be, or not?")) == "To be, or not?"


@pytest.mark.parametrize(
    ("x", "y"), [(["a" * 79], ["b"]), (["a" * 80], ["bc"]), ([[1] * 80], ["b"]), (["a" * 80], [3])]
)
def test_windows_of_another_length_are_refused(x: list[str], y: list[str]) -> None:
    with pytest.raises(ValueError, match="must be strings of"):
        windows(x, y)


def test_token_arrays_are_checked() -> None:
    with pytest.raises(ValueError, match=r"tokens must be in 0\.\.79"):
        windows(np.full((1, 80), 80), np.zeros(1, np.int64))
