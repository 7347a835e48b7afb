"""Hit rate for the `evaluate` library."""

from umarvel_hf.evaluation import evaluate_metrics


class HitRate(evaluate_metrics.RankingMetric):
    """Share of queries with a right answer among the first k: what M-BEIR calls recall@k."""

    metric = "hit"
