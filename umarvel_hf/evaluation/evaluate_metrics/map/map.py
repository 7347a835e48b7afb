"""Mean average precision for the `evaluate` library."""

from umarvel_hf.evaluation import evaluate_metrics


class MeanAveragePrecision(evaluate_metrics.RankingMetric):
    """Mean precision at the right answers among the first k, over all right answers."""

    metric = "map"
