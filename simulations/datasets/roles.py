"""Generated stand-in for Shakespeare: roles with their own habits of speech.

Every role draws, from its own stream, favourite words, favourite turns of phrase, a way to
address others and an oath; its text is then spoken from one small grammar.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fl_shield.simulations.datasets.corpus import Corpus, Owner, Request
from fl_shield.simulations.datasets.shakespeare import LENGTH, encode, text_corpus
from fl_shield.types import Floats, Samples

WORDS = {
    "noun": "king crown sword heart night day love blood honour grave moon rose storm ship horse "
    "castle ghost letter ring fool knave prince lady sea fire tongue dream shadow throne winter",
    "verb": "speak bleed swear follow mourn fight forgive hide ride weep burn rise fall wait obey "
    "remember forget banish crown strike",
    "adjective": "sweet bitter noble false gentle cruel pale golden bloody weary merry proud "
    "silent cold faithful",
    "name": "Orsina Falco Bertran Isolde Mortane Lucia Gaspar Helenor Rosamond Tybert",
    "address": "my lord;good sir;sweet lady;old friend;dear cousin;your grace",
    "oath": "By heaven;Alas;Marry;In faith;Zounds;Hark",
}
TURNS = (
    "{oath}, {address}, the {adjective} {noun} will {verb}.",
    "I {verb} for the {noun} of {name}, and the {noun} knows it.",
    "What {noun} is this, that dares to {verb} before the {noun}?",
    "Thou {adjective} {noun}! I shall {verb} thee ere the {noun} be gone.",
    "Come, {address}; let us {verb} and {verb}, for {name} is {adjective}.",
    "If the {noun} be {adjective}, then why should {name} {verb}?",
    "O {adjective}, {adjective} {noun}, thou wert my {noun}.",
    "Nay, {name}, speak not of the {noun}; it is a {adjective} {noun}.",
)
N_SENTENCES = (15, 50)
STRIDE = 3
TRAIN_SHARE = 0.8


@dataclass(frozen=True, kw_only=True)
class Habits:
    """How one role speaks.

    Attributes
    ----------
    words : dict
        Choices of each slot of the grammar.
    weights : dict
        Probability of each choice, by slot.
    turns : (n_turns,) float array
        Probability of each turn of phrase.
    """

    words: dict[str, list[str]]
    weights: dict[str, Floats]
    turns: Floats


def draw_habits(rng: np.random.Generator) -> Habits:
    """Draw the habits of one role: few favourites in each slot, few turns of phrase."""
    words = {
        slot: choices.split(";" if slot in ("address", "oath") else " ")
        for slot, choices in WORDS.items()
    }
    return Habits(
        words=words,
        weights={slot: rng.dirichlet(np.full(len(w), 0.3)) for slot, w in words.items()},
        turns=rng.dirichlet(np.full(len(TURNS), 0.6)),
    )


def speak(habits: Habits, n_sentences: int, rng: np.random.Generator) -> str:
    """Text of so many sentences, spoken with these habits.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> len(speak(draw_habits(rng), 30, rng)) > 30 * 20
    True
    """
    sentences = []
    for turn in rng.choice(len(TURNS), size=n_sentences, p=habits.turns):
        sentence = TURNS[turn]
        for slot, words in habits.words.items():
            blank = "{" + slot + "}"
            while blank in sentence:
                word = words[int(rng.choice(len(words), p=habits.weights[slot]))]
                sentence = sentence.replace(blank, word, 1)
        sentences.append(sentence)
    return " ".join(sentences)


def read_roles(request: Request) -> Corpus:
    """Generated roles: int64 tokens (n, 80) in LEAF's vocabulary, label = next character.

    As in LEAF, the first 80 % of a role's text are for training and no window crosses the cut.

    Parameters
    ----------
    request : Request
        Number of roles and seed; nothing is read.

    Examples
    --------
    >>> read_roles(Request(n_owners=2)).owners[0].train.x.shape[1]
    80
    """
    owners = []
    for i in range(request.n_owners):
        rng = request.rng(i)
        habits = draw_habits(rng)
        text = speak(habits, int(rng.integers(*N_SENTENCES)), rng)
        cut = round(TRAIN_SHARE * len(text))
        train, test = sliding_windows(text[:cut]), sliding_windows(text[cut:])
        owners.append(Owner(name=f"role-{i:03d}", train=train, test=test))
    return text_corpus("roles", tuple(owners))


def sliding_windows(text: str) -> Samples:
    """Windows of 80 characters, every third, and the character behind each.

    Examples
    --------
    >>> sliding_windows("a" * 90).x.shape
    (4, 80)
    """
    tokens = encode(text)
    x = np.lib.stride_tricks.sliding_window_view(tokens, LENGTH)[:-1:STRIDE]
    return Samples(x=x.copy(), y=tokens[LENGTH::STRIDE].copy())
