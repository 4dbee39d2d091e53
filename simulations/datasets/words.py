"""Words as numbers: a plain tokenizer and a vocabulary of frequent words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from fl_shield.simulations.datasets.parts import Parts, PartsRequest, draw_parts
from fl_shield.simulations.datasets.tables import Labelled
from fl_shield.types import Ints, Samples

PADDING, UNKNOWN = 0, 1
"""Ids that stand for no word: what fills a short text, and a word that is not known."""

RESERVED = ("<padding>", "<unknown>")
N_WORDS = 5000

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")
_APOSTROPHE = re.compile(r" ?&?#0?39;")
_LEFTOVER = re.compile(r"&lt;[^&<>]{0,200}&gt;|<[^<>]{0,200}>|&?#\d+;|&[a-z]+;|\\")


def split_words(text: str) -> list[str]:
    """Words and numbers of a text, in small letters; leftovers of HTML are no words.

    Examples
    --------
    >>> split_words("It #39;s a 2-for-1 deal &lt;b&gt;today&lt;/b&gt;!")
    ["it's", 'a', '2', 'for', '1', 'deal', 'today']
    """
    plain = _LEFTOVER.sub(" ", _APOSTROPHE.sub("'", text))
    return _WORD.findall(plain.lower())


def make_vocabulary(texts: Iterable[Sequence[str]], n_words: int = N_WORDS) -> tuple[str, ...]:
    """Padding, unknown, then the most frequent words, the alphabet deciding between equals.

    Parameters
    ----------
    texts : iterable of sequences of str
        Texts as words.
    n_words : int
        Most words, beside the two reserved ids.

    Examples
    --------
    >>> make_vocabulary([["b", "a"], ["c", "c"]], n_words=2)
    ('<padding>', '<unknown>', 'c', 'a')
    """
    counts = Counter(word for text in texts for word in text)
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    return (*RESERVED, *ranked[:n_words])


def encode_words(texts: Sequence[Sequence[str]], words: Sequence[str], length: int) -> Ints:
    """Ids of the first ``length`` words of each text, padded on the left, (n, length) int64.

    Parameters
    ----------
    texts : n sequences of str
        Texts as words.
    words : sequence of str
        The vocabulary, see :func:`make_vocabulary`.
    length : int
        Ids of one text.

    Examples
    --------
    >>> encode_words([["a", "z"], list("abcd")], (*RESERVED, "a", "b"), 3).tolist()
    [[0, 2, 1], [2, 3, 1]]
    """
    ids = {word: i for i, word in enumerate(words) if i >= len(RESERVED)}
    out = np.full((len(texts), length), PADDING, dtype=np.int64)
    for row, text in zip(out, texts, strict=True):
        first = [ids.get(word, UNKNOWN) for word in text[:length]]
        row[length - len(first) :] = first
    return out


def word_parts(
    request: PartsRequest, parts: Sequence[Labelled], length: int, n_classes: int
) -> Parts:
    """Labelled texts as ids; the vocabulary is the whole train part's, whatever is drawn.

    Parameters
    ----------
    request : PartsRequest
        How many, and the seed of the draw.
    parts : train and test
        Texts and labels; a text without a word is left out.
    length : int
        Ids of one text.
    n_classes : int
        Of the labels.
    """
    split = [([split_words(text) for text in texts], labels) for texts, labels in parts]
    words = make_vocabulary(split[0][0])
    samples = []
    for texts, labels in split:
        some = np.array([len(text) > 0 for text in texts], dtype=np.bool_)
        x = encode_words(texts, words, length)
        samples.append(Samples(x=x[some], y=labels[some]))
    train, test = draw_parts(request, *samples)
    return Parts(train=train, test=test, n_classes=n_classes, words=words)
