"""Layer substitution analysis: which layers of a poisoned network carry its backdoor."""

from collections.abc import Callable, Sequence

from fl_shield.types import Arrays


def layer_substitution_analysis(
    benign: Arrays,
    malicious: Arrays,
    evaluate: Callable[[Arrays], float],
    layers: Sequence[str],
    tau: float = 0.95,
) -> tuple[list[str], dict[str, float]]:
    """Find the backdoor-critical layers by swapping layers between two models.

    *Forward*: put each benign layer alone into the malicious model and note by how much the
    backdoor success rate (BSR) drops. *Backward*: copy the malicious layers with the largest
    drops into the benign model, one after another, until its BSR reaches ``tau`` times that of
    the malicious model; these are the critical layers.

    Parameters
    ----------
    benign, malicious : Arrays
        Two models with the same names. Tensors outside ``layers`` (batch statistics) are never
        swapped.
    evaluate : callable
        BSR of a model, in [0, 1]; called at most ``2 * len(layers) + 1`` times.
    layers : sequence of str
        Names to swap, one named parameter tensor each (weight and bias apart).
    tau : float
        Share of the malicious BSR to reach, in (0, 1].

    Returns
    -------
    critical : list of str
        The critical layers, the most critical first; equal drops keep the order of ``layers``.
        All layers if even they do not reach the mark; none if the malicious BSR is 0.
    drops : dict of str to float
        Drop of the BSR by layer, in the order of ``layers``; negative where it rose.

    References
    ----------
    Zhuang et al., "Backdoor Federated Learning by Poisoning Backdoor-Critical Layers", ICLR
    2024 (arXiv 2308.04466), section 3.

    Examples
    --------
    A backdoor that lives in ``b`` alone:

    >>> import numpy as np
    >>> zeros, ones = ({n: np.full(1, v) for n in "abc"} for v in (0.0, 1.0))
    >>> critical, drops = layer_substitution_analysis(
    ...     zeros, ones, lambda arrays: float(arrays["b"][0]), ["a", "b", "c"])
    >>> critical, drops
    (['b'], {'a': 0.0, 'b': 1.0, 'c': 0.0})
    """
    if not 0 < tau <= 1:
        raise ValueError(f"tau must be in (0, 1], got {tau}")
    malicious_rate = evaluate(malicious)
    if malicious_rate <= 0:
        return [], dict.fromkeys(layers, 0.0)
    drops = {name: malicious_rate - evaluate({**malicious, name: benign[name]}) for name in layers}
    mixed, critical = dict(benign), []
    for name in sorted(layers, key=lambda layer: -drops[layer]):
        mixed[name] = malicious[name]
        critical.append(name)
        if evaluate(mixed) >= tau * malicious_rate:
            break
    return critical, drops
