"""Metrics of the `evaluate` library, a folder each: ``evaluate.load`` takes its path, Python imports its class.

The library's loader reads a metric's imports with a pattern: one module per line. It takes the first metric that it
finds in the file, so the base class is not imported there by name.
"""

from collections.abc import Sequence

import datasets

from umarvel_hf._torchvision import ensure_torchvision

ensure_torchvision()  # evaluate imports transformers

import evaluate

from umarvel_hf.evaluation.metrics import judge, measure


class RankingMetric(evaluate.Metric):
    """``compute(predictions=ranked ids, references=right ids, ks=(1, 5, 10))``: means over the queries, 0 to 1.

    Attributes:
        metric: Its name in ``evaluation.metrics``, such as ``hit`` for ``hit@5``.
    """

    metric: str

    def _info(self) -> evaluate.MetricInfo:
        ids = datasets.Sequence(datasets.Value("string"))
        return evaluate.MetricInfo(
            description=type(self).__doc__,
            citation="",
            inputs_description="predictions: ids, best first, per query. references: right ids, per query. ks: depths.",
            features=datasets.Features({"predictions": ids, "references": ids}),
        )

    def _compute(
        self, predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]], ks: Sequence[int] = (1, 5, 10)
    ) -> dict[str, float]:
        values = measure(judge(predictions, references), [f"{self.metric}@{k}" for k in ks])
        return {name: float(one.mean()) for name, one in values.items()}
