"""Scikit-learn's handwritten digits: 1,797 real 8x8 images, embedded in the dependency."""

import numpy as np
from sklearn.datasets import load_digits

from fl_shield.simulations.datasets.corpus import Corpus, Owner, Request
from fl_shield.types import Samples

TEST_SHARE = 0.2


def read_digits(request: Request) -> Corpus:
    """Digits as one pool of float32 images (n, 1, 8, 8) in [0, 1], bright on dark.

    Parameters
    ----------
    request : Request
        Its seed draws which fifth is the test part, class by class, and what of the rest is left
        where ``n_train`` limits it; nothing else is read.

    References
    ----------
    E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
    Repository, 1998 (its test part, 0..16 per pixel).

    Examples
    --------
    >>> pool = read_digits(Request(n_owners=1)).owners[0]
    >>> pool.train.x.shape, len(pool.test)
    ((1438, 1, 8, 8), 359)
    """
    raw = load_digits()
    x = (raw.data.reshape(-1, 1, 8, 8) / 16.0).astype(np.float32)
    y = raw.target.astype(np.int64)
    rng = request.rng()
    held = np.zeros(len(y), dtype=np.bool_)
    for label in range(10):
        members = rng.permutation(np.flatnonzero(y == label))
        held[members[: round(TEST_SHARE * len(members))]] = True
    pool = Samples(x=x, y=y)
    train = pool.take(~held)
    train = train.take(request.parts.draw("train", train.y))
    owner = Owner(name="digits", train=train, test=pool.take(held))
    return Corpus(name="digits", kind="image", n_classes=10, owners=(owner,), natural=False)
