"""Federations of texts in words, from small tables written here."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fl_shield.errors import DatasetError
from fl_shield.rng import keyed
from fl_shield.simulations.datasets import FederatedData, fingerprint, load
from fl_shield.simulations.datasets.words import split_words
from fl_shield.simulations.pools import load_pool
from fl_shield.simulations.scenario import Scenario
from fl_shield.simulations.task import open_task
from fl_shield.simulations.victims import build_model, default_model, default_training
from fl_shield.training import accuracy, train
from fl_shield.types import Samples

TOPICS = (
    ["minister", "war", "treaty", "border", "embassy"],
    ["goal", "coach", "season", "striker", "match"],
    ["stock", "profit", "oil", "shares", "market"],
    ["chip", "software", "telescope", "gene", "planet"],
)
FILLERS = ["the", "a", "of", "to", "on", "with", "this", "said", "after", "new"]


def sentences(n: int, seed: int) -> list[tuple[int, str]]:
    """Topics and texts: two words of the topic among six that say nothing."""
    rng = np.random.default_rng(seed)
    out = []
    for i in range(n):
        words = [*rng.choice(TOPICS[i % 4], 2), *rng.choice(FILLERS, 6)]
        out.append((i % 4, " ".join(rng.permutation(words)) + f" n{seed}x{i}."))
    return out


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    (tmp_path / "ag_news").mkdir()
    for name, n, seed in (("train", 200, 0), ("test", 60, 1)):
        table = "".join(f'"{y + 1}","title","{text}"\n' for y, text in sentences(n, seed))
        (tmp_path / "ag_news" / f"{name}.csv.gz").write_bytes(gzip.compress(table.encode()))
    return tmp_path


def news(data_dir: Path, **options: Any) -> FederatedData:
    return load("ag-news", data_dir=data_dir, **{"n_clients": 4, "n_clean": 8, **options})


def test_news_are_shared_out_as_words(data_dir: Path) -> None:
    data = news(data_dir)
    assert (data.kind, data.input_shape, data.n_classes) == ("text", (32,), 4)
    assert data.vocabulary[:2] == ("<padding>", "<unknown>")
    assert set(FILLERS) < set(data.vocabulary)
    assert (sum(map(len, data.clients)), len(data.test), len(data.clean)) == (192, 60, 8)


def test_ids_read_as_the_text_of_their_label(data_dir: Path) -> None:
    data = news(data_dir)
    known = {tuple(split_words(text)): y for y, text in sentences(200, 0)}
    found = []
    for part in (*data.clients, data.clean):
        for x, y in zip(part.x, part.y, strict=True):
            words = tuple(data.vocabulary[t] for t in x if t)
            assert known[words] == y
            found.append(words)
    assert sorted(found) == sorted(known)


def test_no_text_is_in_two_places(data_dir: Path) -> None:
    data = news(data_dir)
    texts = [x.tobytes() for part in (*data.clients, data.test, data.clean) for x in part.x]
    assert len(set(texts)) == len(texts)


def test_the_vocabulary_is_that_of_the_pool_whoever_holds_what(data_dir: Path) -> None:
    few, all_ = news(data_dir, examples_per_client=12), news(data_dir)
    assert sum(map(len, few.clients)) == 48
    assert few.vocabulary == all_.vocabulary == load_pool("ag-news", data_dir=data_dir).words


def test_the_seed_decides_who_holds_what(data_dir: Path) -> None:
    prints = [fingerprint(news(data_dir, seed=seed)) for seed in (0, 0, 1)]
    assert prints[0] == prints[1] != prints[2]


def test_a_label_that_is_none_is_refused(data_dir: Path) -> None:
    path = data_dir / "ag_news" / "train.csv.gz"
    table = gzip.decompress(path.read_bytes()).decode().replace('"4","title"', '"5","title"')
    path.write_bytes(gzip.compress(table.encode()))
    with pytest.raises(DatasetError, match=r"labels of client .* must be int64 in 0\.\.3"):
        news(data_dir)


def test_news_are_learned_by_the_default_model(data_dir: Path) -> None:
    data = news(data_dir)
    model = build_model(default_model("ag-news"), data, seed=0)
    pooled = Samples.join(data.clients)
    for epoch in range(4):
        train(model, pooled, default_training("ag-news"), keyed(0, epoch))
    assert accuracy(model, data.test) > 0.9


def test_a_scenario_stamps_rare_words(data_dir: Path) -> None:
    scenario = Scenario(
        dataset="ag-news", data_dir=str(data_dir), n_clients=4, clients_per_round=4, target_label=2
    )
    assert (scenario.partition, scenario.trigger, scenario.model) == (
        "dirichlet",
        "word",
        "news-averager",
    )
    task = open_task(scenario)
    others = task.data.test.take(task.data.test.y != 2)
    changed = task.stamped.x != others.x
    assert changed.any(axis=1).all()
    assert not changed[:, :-4].any()
    assert len({row.tobytes() for row in task.stamped.x[:, -4:]}) == 1
    assert task.new_model()(torch.from_numpy(others.x[:3])).shape == (3, 4)
