"""Whether a difference between two systems could be the luck of the queries."""

from collections.abc import Sequence

import numpy as np


def paired_randomisation(first: np.ndarray, second: np.ndarray, *, flips: int = 10_000, seed: int = 0) -> float:
    """Two-sided p-value of the difference in mean between two systems on the same queries.

    If the systems were equal, either could have produced each of a query's two values. So the signs of the differences
    are flipped at random ``flips`` times; the p-value is the share of outcomes at least as far from zero as the one
    observed, itself counted.

    Args:
        first, second: (Q,) one value per query, in the same order.
    """
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"Values have shapes {first.shape} and {second.shape}; pass one per query for both, (Q,).")
    difference = first.astype(np.float64) - second.astype(np.float64)
    difference = difference[difference != 0]  # a flipped zero changes nothing
    observed = abs(difference.sum()) - 1e-9  # rounding must not turn a tie into a smaller outcome
    generator = np.random.default_rng(seed)
    as_extreme = 0
    for start in range(0, flips, 256):  # in blocks, for memory: (256, Q)
        shape = (min(256, flips - start), len(difference))
        signs = generator.integers(0, 2, size=shape, dtype=np.int8) * 2.0 - 1.0
        as_extreme += int((np.abs(signs @ difference) >= observed).sum())
    return (as_extreme + 1) / (flips + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction: the p-values to compare with the level when all of these tests are made at once."""
    corrected = [0.0] * len(p_values)
    running = 0.0
    for rank, at in enumerate(sorted(range(len(p_values)), key=lambda at: p_values[at])):
        running = max(running, min(1.0, p_values[at] * (len(p_values) - rank)))
        corrected[at] = running
    return corrected
