"""Whether a difference between two systems could be the luck of the queries, and how large it is."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

LEVEL = 0.05
LOWER_IS_BETTER = ("wrong_modality@10",)
BLOCK = 2**20  # random numbers held at once
FEW = 256  # up to so many distinct values are resampled by their counts


@dataclass(frozen=True)
class Comparison:
    """Two systems on the same queries.

    Args:
        name: What was compared, such as a task.
        first_score, second_score: Means of ``metric``, 0 to 1.
        low, high: 95 % bootstrap interval of the mean difference, first minus second; not corrected for other tests.
        effect: See :func:`effect_size`.
        wins, losses: Queries on which the first system is better, worse.
        p_value, p_holm: Of the paired randomisation test, alone and corrected for all tests made together.
    """

    name: str
    metric: str
    queries: int
    first: str
    first_score: float
    second: str
    second_score: float
    low: float
    high: float
    effect: float | None
    wins: int
    losses: int
    p_value: float
    p_holm: float = 1.0

    @property
    def difference(self) -> float:
        """First minus second."""
        return self.first_score - self.second_score

    @property
    def verdict(self) -> str:
        """``better`` or ``worse`` (the first system) where the corrected p-value is below LEVEL, else ``no difference
        shown``."""
        if self.p_holm >= LEVEL:
            return "no difference shown"
        return "better" if (self.difference > 0) != (self.metric in LOWER_IS_BETTER) else "worse"

    @property
    def effect_text(self) -> str:
        """The effect with its sign; infinite where all differences are the same."""
        return f"{self.difference:+.0f}"[0] + "inf" if self.effect is None else f"{self.effect:+.2f}"


def paired(
    name: str, metric: str, first: str, first_values: np.ndarray, second: str, second_values: np.ndarray
) -> Comparison:
    """Compare two systems query by query; :func:`corrected` is still to be applied.

    Args:
        first_values, second_values: (Q,) one value per query, in the same order.
    """
    p_value = paired_randomisation(first_values, second_values)
    difference = first_values.astype(np.float64) - second_values.astype(np.float64)
    low, high = bootstrap_interval(difference)
    gains = -difference if metric in LOWER_IS_BETTER else difference
    return Comparison(
        name=name,
        metric=metric,
        queries=len(difference),
        first=first,
        first_score=float(first_values.mean()),
        second=second,
        second_score=float(second_values.mean()),
        low=low,
        high=high,
        effect=effect_size(difference),
        wins=int((gains > 0).sum()),
        losses=int((gains < 0).sum()),
        p_value=p_value,
    )


def corrected(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The same comparisons with p-values corrected for their number (Holm)."""
    p_values = holm([one.p_value for one in comparisons])
    return [replace(one, p_holm=p) for one, p in zip(comparisons, p_values, strict=True)]


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
    total = difference.sum()
    observed = abs(total) - 1e-9  # rounding must not turn a tie into a smaller outcome
    generator = np.random.default_rng(seed)
    as_extreme = 0
    for rows in _blocks(flips, len(difference)):
        drawn = generator.integers(0, 256, size=(rows, math.ceil(len(difference) / 8)), dtype=np.uint8)
        kept = np.unpackbits(drawn, axis=1, count=len(difference))  # (rows, Q): 1 keeps the sign, 0 flips it
        as_extreme += int((np.abs(2 * (kept @ difference) - total) >= observed).sum())
    return (as_extreme + 1) / (flips + 1)


def bootstrap_interval(
    values: np.ndarray, *, level: float = 0.95, draws: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the mean over queries, from ``draws`` resamples of the queries.

    Args:
        values: (Q,) one value per query.
    """
    if values.ndim != 1 or not len(values):
        raise ValueError(f"Values have shape {values.shape}; pass one per query, (Q,).")
    generator = np.random.default_rng(seed)
    distinct, counts = np.unique(values.astype(np.float64), return_counts=True)
    if len(distinct) <= FEW:  # how often each value is drawn is all that matters: thousands of times faster
        means = generator.multinomial(len(values), counts / len(values), size=draws) @ distinct / len(values)
    else:
        blocks = (generator.integers(0, len(values), size=(rows, len(values))) for rows in _blocks(draws, len(values)))
        means = np.concatenate([values[drawn].mean(axis=1) for drawn in blocks])
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def effect_size(difference: np.ndarray) -> float | None:
    """Mean of the paired differences over their sample standard deviation (Cohen's d for paired values).

    0 where all differences are 0; None, for infinite, where all are the same and not 0.

    Args:
        difference: (Q,) one per query.
    """
    if np.ptp(difference) == 0:
        return None if difference[0] else 0.0
    return float(difference.mean() / difference.std(ddof=1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction: the p-values to compare with the level when all of these tests are made at once."""
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, at in enumerate(sorted(range(len(p_values)), key=lambda at: p_values[at])):
        running = max(running, min(1.0, p_values[at] * (len(p_values) - rank)))
        adjusted[at] = running
    return adjusted


def _blocks(rows: int, columns: int) -> list[int]:
    """Split so many rows that no block holds more than BLOCK numbers."""
    step = max(1, BLOCK // max(1, columns))
    return [min(step, rows - start) for start in range(0, rows, step)]
