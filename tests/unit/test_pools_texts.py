"""Pools of text from small tables written here."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from fl_shield.errors import DatasetError
from fl_shield.simulations.datasets.words import encode_words, make_vocabulary, split_words
from fl_shield.simulations.pools import load_pool

NEWS = '"1","A title","Peace in the north, peace in the south."\n"3","","Stocks, up!"\n'
NEWS_TEST = '"4","x","A new peace chip"\n"2","y","..."\n'


def news(folder: Path, train: str = NEWS, test: str = NEWS_TEST, suffix: str = ".gz") -> Path:
    (folder / "ag_news").mkdir()
    for name, text in (("train.csv", train), ("test.csv", test)):
        data = text.encode()
        path = folder / "ag_news" / (name + suffix)
        path.write_bytes(gzip.compress(data) if suffix else data)
    return folder


def sentences(folder: Path, train: str, test: str) -> Path:
    (folder / "sst2").mkdir()
    for name, text in (("train", train), ("test", test)):
        path = folder / "sst2" / f"sentences_{name}.tsv.gz"
        path.write_bytes(gzip.compress(f"sentence\tlabel\n{text}".encode()))
    return folder


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_news_are_read_without_their_titles_and_padded_left(tmp_path: Path, suffix: str) -> None:
    pool = load_pool("ag-news", data_dir=news(tmp_path, suffix=suffix))
    reserved = ("<padding>", "<unknown>")
    assert pool.words == (*reserved, "in", "peace", "the", "north", "south", "stocks", "up")
    assert pool.n_tokens == 9
    assert pool.train.x.shape == (2, 32)
    assert pool.train.x.dtype == np.int64
    assert pool.train.x[0].tolist() == [0] * 24 + [3, 2, 4, 5, 3, 2, 4, 6]
    assert pool.train.y.tolist() == [0, 2]
    # the text without a word is left out; words of the test part alone are unknown
    assert pool.test.x[:, -4:].tolist() == [[1, 1, 3, 1]]
    assert pool.test.y.tolist() == [3]


def test_the_vocabulary_does_not_depend_on_the_draw(tmp_path: Path) -> None:
    folder = news(tmp_path)
    few, all_ = (load_pool("ag-news", data_dir=folder, n_train=n) for n in (1, None))
    assert few.words == all_.words


def test_sentences_keep_their_first_24_words_and_quotes_are_letters(tmp_path: Path) -> None:
    long = " ".join(f"w{i:02d}" for i in range(30))
    folder = sentences(tmp_path, f'{long}\t1\n"half a quote\t0\n', 'a "quote" of\t1\n')
    pool = load_pool("sst2", data_dir=folder)
    assert pool.train.x.shape == (2, 24)
    assert [pool.words[i] for i in pool.train.x[0]] == [f"w{i:02d}" for i in range(24)]
    assert [pool.words[i] for i in pool.train.x[1, -4:]] == ["<padding>", "half", "a", "quote"]
    assert (pool.n_classes, pool.train.y.tolist(), pool.test.y.tolist()) == (2, [1, 0], [1])


def test_a_sentence_of_the_test_part_leaves_train(tmp_path: Path) -> None:
    folder = sentences(tmp_path, "good film\t1\nbad film\t0\n", "Good film !\t1\n")
    assert load_pool("sst2", data_dir=folder).train.y.tolist() == [0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't PANIC", ["don't", "panic"]),
        ("it #39;s", ["it's"]),
        ("rocket\\team #36;10", ["rocket", "team", "10"]),
        ("&lt;A HREF=&quot;x&quot;&gt; AT&amp;T", ["a", "href", "x", "at", "t"]),
        ("crème_brûlée", ["crème", "brûlée"]),
        ("...", []),
        ("", []),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert split_words(text) == words


def test_the_most_frequent_words_have_the_smallest_ids() -> None:
    rng = np.random.default_rng(0)
    texts = [rng.choice(list("abcdefgh"), 20, p=np.arange(1, 9) / 36).tolist() for _ in range(40)]
    counts = {w: sum(t.count(w) for t in texts) for w in "abcdefgh"}
    words = make_vocabulary(texts, n_words=5)
    assert len(words) == 7
    ranked = [counts[w] for w in words[2:]]
    assert ranked == sorted(counts.values(), reverse=True)[:5]


def test_reserved_ids_have_no_word_in_a_text() -> None:
    words = ("<padding>", "<unknown>", "a")
    assert encode_words([["<padding>", "<unknown>"], []], words, 3).tolist() == [
        [0, 1, 1],
        [0, 0, 0],
    ]


@pytest.mark.parametrize(
    ("train", "complaint"),
    [
        ('"1","no description"\n', "row 1 of .* has 2 columns and must have 3"),
        ('"World","","text"\n', "labels in .* must be whole numbers, got 'World'"),
        ('"5","","text"\n', r"labels of ag-news's train part must be in 0\.\.3, got 4\.\.4"),
        ('"0","","text"\n', r"got -1\.\.-1"),
        ("", "ag-news has no train example"),
    ],
)
def test_broken_tables_are_refused(train: str, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=complaint):
        load_pool("ag-news", data_dir=news(tmp_path, train=train))


@pytest.mark.parametrize("content", [b"", b"no gzip", gzip.compress(b"\xff\xfe")[:-4]])
def test_broken_files_are_refused(content: bytes, tmp_path: Path) -> None:
    folder = news(tmp_path)
    (folder / "ag_news" / "train.csv.gz").write_bytes(content)
    with pytest.raises(DatasetError, match=r"cannot be read as a table|has no train example"):
        load_pool("ag-news", data_dir=folder)
