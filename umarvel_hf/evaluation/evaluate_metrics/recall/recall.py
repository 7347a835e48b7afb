"""Recall for the `evaluate` library."""

from umarvel_hf.evaluation import evaluate_metrics


class Recall(evaluate_metrics.RankingMetric):
    """Share of a query's right answers that stand among the first k."""

    metric = "recall"
