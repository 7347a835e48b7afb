"""Hit rate as a metric of the `evaluate` library; `evaluate.load` takes the path of this file, too.

Its loader reads the imports with a pattern: one module per line.
"""

from collections.abc import Sequence

import datasets
import evaluate

from umarvel_hf.evaluation.metrics import first_hits, hits_at


class HitRate(evaluate.Metric):
    """``compute(predictions=ranked ids, references=right ids, ks=(1, 5, 10))`` returns ``{"hit@1": …}``, 0 to 1."""

    def _info(self) -> evaluate.MetricInfo:
        ids = datasets.Sequence(datasets.Value("string"))
        return evaluate.MetricInfo(
            description="Share of queries with a right answer among the first k: what M-BEIR calls recall@k.",
            citation="",
            inputs_description="predictions: ids, best first, per query. references: right ids, per query. ks: depths.",
            features=datasets.Features({"predictions": ids, "references": ids}),
        )

    def _compute(
        self, predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]], ks: Sequence[int] = (1, 5, 10)
    ) -> dict[str, float]:
        first = first_hits(predictions, references)
        return {f"hit@{k}": float(hits_at(first, k).mean()) for k in ks}
