"""Measures over ranked ids: by hand, as trec_eval and ranx compute them, and in the `evaluate` library."""

import random
from pathlib import Path

import numpy as np
import pytest
import pytrec_eval

import umarvel_hf.evaluation.evaluate_metrics as evaluate_metrics
from umarvel_hf.evaluation.evaluate_metrics.hit_rate.hit_rate import HitRate
from umarvel_hf.evaluation.evaluate_metrics.map.map import MeanAveragePrecision
from umarvel_hf.evaluation.evaluate_metrics.recall.recall import Recall
from umarvel_hf.evaluation.metrics import judge, measure, ranked_ids

RANKED = [["a", "b", "c"], ["a", "b", "c"], ["a", "b"], []]
RIGHT = [["c", "b"], {"a"}, ("z",), {"a": 2}]
PEERS = {  # ours: trec_eval's, ranx's (without @k: over the whole list)
    "hit": ("success", "hit_rate"),
    "recall": ("recall", "recall"),
    "precision": ("P", "precision"),
    "ndcg": ("ndcg_cut", "ndcg"),
    "map": ("map_cut", "map"),
    "mrr": ("recip_rank", "mrr"),
}
DEPTHS = (1, 3, 5, 10, 50, 200)  # lists hold at most 60 answers


def random_runs(queries, *, ties, graded):
    """Runs and qrels over 80 candidates: several right answers, often not found; qids in the order of ranx."""
    draw = random.Random(f"{ties}-{graded}")
    pool = [f"{at}:{draw.randrange(10**6)}" for at in range(80)]
    run, qrels = {}, {}
    for at in range(queries):
        found = draw.sample(pool, draw.randint(1, 60))
        points = draw.choices(range(12), k=len(found)) if ties else draw.sample(range(10**6), len(found))
        run[f"q{at:04d}"] = {did: point / 8 for did, point in zip(found, points, strict=True)}
        judged = draw.sample(pool, draw.randint(1, 12))
        qrels[f"q{at:04d}"] = {did: draw.randint(-1, 3) if graded else draw.randint(0, 1) for did in judged}
        qrels[f"q{at:04d}"][judged[0]] = 1
    return run, qrels


def measured(run, qrels, names):
    return measure(judge([ranked_ids(run[qid]) for qid in qrels], list(qrels.values())), names)


def test_the_first_right_answer_counts_as_worked_by_hand():
    found = measure(judge(RANKED, RIGHT), ["hit@1", "hit@2", "hit@50", "mrr", "mrr@1"])
    assert {name: values.tolist() for name, values in found.items()} == {
        "hit@1": [0, 1, 0, 0],
        "hit@2": [1, 1, 0, 0],
        "hit@50": [1, 1, 0, 0],
        "mrr": [0.5, 1, 0, 0],
        "mrr@1": [0, 1, 0, 0],
    }


def test_all_right_answers_count_as_worked_by_hand():
    found = measure(judge(RANKED, RIGHT), ["recall@2", "recall@9", "precision@2", "precision@9", "map", "map@2"])
    assert found["recall@2"].tolist() == [0.5, 1, 0, 0]
    assert found["recall@9"].tolist() == [1, 1, 0, 0]
    assert found["precision@2"].tolist() == [0.5, 0.5, 0, 0]
    assert found["precision@9"] == pytest.approx([2 / 9, 1 / 9, 0, 0])  # over k, though the list is shorter
    assert found["map"] == pytest.approx([(1 / 2 + 2 / 3) / 2, 1, 0, 0])
    assert found["map@2"] == pytest.approx([(1 / 2) / 2, 1, 0, 0])  # over all right answers, found or not


def test_grades_count_as_worked_by_hand():
    judged = judge([["x", "b", "w", "a", "c"]], [{"a": 3, "b": 1, "c": 2, "w": 0, "x": -1}])
    ideal = 3 + 2 / np.log2(3) + 1 / 2
    found = measure(judged, ["ndcg", "ndcg@2", "ndcg@4", "recall@2"])
    assert found["ndcg"] == pytest.approx((1 / np.log2(3) + 3 / np.log2(5) + 2 / np.log2(6)) / ideal)
    assert found["ndcg@4"] == pytest.approx((1 / np.log2(3) + 3 / np.log2(5)) / ideal)
    assert found["ndcg@2"] == pytest.approx((1 / np.log2(3)) / (3 + 2 / np.log2(3)))
    assert found["recall@2"] == pytest.approx(1 / 3)  # relevance 0 and less is wrong


@pytest.mark.parametrize("graded", [False, True])
def test_trec_eval_agrees_on_runs_with_ties(graded):
    run, qrels = random_runs(1000, ties=True, graded=graded)
    cut = {f"{theirs}.{','.join(map(str, DEPTHS))}" for ours, (theirs, _) in PEERS.items() if ours != "mrr"}
    theirs = pytrec_eval.RelevanceEvaluator(qrels, cut | {"ndcg", "map", "recip_rank"}).evaluate(run)
    names = {f"{ours}@{k}": f"{PEERS[ours][0]}_{k}" for ours in PEERS if ours != "mrr" for k in DEPTHS}
    names |= {"ndcg": "ndcg", "map": "map", "mrr": "recip_rank"}
    for ours, values in measured(run, qrels, names).items():
        assert values == pytest.approx([theirs[qid][names[ours]] for qid in qrels], abs=1e-12), ours


@pytest.mark.slow  # ranx compiles for most of a minute
@pytest.mark.filterwarnings("ignore:.*unsafe cast from uint64 to int64")  # by numba, in ranx's sorting
@pytest.mark.parametrize("graded", [False, True])
def test_ranx_agrees_on_runs_without_ties(graded):
    import ranx

    run, qrels = random_runs(1000, ties=False, graded=graded)
    right = {qid: {did: to for did, to in answers.items() if to > 0} for qid, answers in qrels.items()}
    names = {f"{ours}@{k}": f"{theirs}@{k}" for ours, (_, theirs) in PEERS.items() for k in DEPTHS}
    names |= {"ndcg": "ndcg", "map": "map", "mrr": "mrr"}
    theirs = ranx.evaluate(ranx.Qrels(right), ranx.Run(run), list(names.values()), return_mean=False)
    for ours, values in measured(run, qrels, names).items():
        assert values == pytest.approx(theirs[names[ours]], abs=1e-9), ours


def test_ties_go_by_id_descending_and_single_precision_counts():
    assert ranked_ids({"1:10": 0.5, "1:9": 0.5, "1:1": 0.9, "1:2": 0.1}) == ["1:1", "1:9", "1:10", "1:2"]
    assert ranked_ids({"a": 1.5e-9, "b": 0.5e-9, "c": 2.5e-9}) == ["c", "a", "b"]
    assert ranked_ids({"a": 100000002, "b": 100000001}) == ["b", "a"]


def test_an_empty_run_and_no_query_at_all_are_measured():
    names = ["hit@1", "recall@1", "precision@1", "ndcg", "mrr", "map"]
    assert all(values.tolist() == [0, 0] for values in measure(judge([[], []], [["a"], ["b"]]), names).values())
    assert all(values.shape == (0,) for values in measure(judge([], []), names).values())


@pytest.mark.parametrize("name", ["hit", "hit@0", "recall@-1", "ndcg@", "ndcg@5.0", "f1@5", "Hit@5", "mrr@ 5"])
def test_an_unknown_metric_is_refused_with_the_list(name):
    with pytest.raises(ValueError, match=rf"'{name}' is no metric; there are hit@k, .*ndcg, mrr and map"):
        measure(judge([["a"]], [["a"]]), [name])


def test_what_cannot_be_judged_is_refused_by_position():
    with pytest.raises(ValueError, match="4 ranked lists for 1 sets"):
        judge(RANKED, RIGHT[:1])
    with pytest.raises(ValueError, match="query 1, counted from 0, holds 'b' twice"):
        judge([["a"], ["b", "c", "b"]], [["a"], ["a"]])
    for nothing in ([], {}, {"a": 0, "b": -1}):
        with pytest.raises(ValueError, match="Query 1, counted from 0, has no right answer"):
            judge([["a"], ["b"]], [["a"], nothing])


@pytest.mark.parametrize("metric", [HitRate, Recall, MeanAveragePrecision])
def test_the_metric_of_evaluate_agrees_also_when_loaded_from_its_folder(metric):
    import evaluate

    folder = {HitRate: "hit_rate", Recall: "recall", MeanAveragePrecision: "map"}[metric]
    loaded = evaluate.load(str(Path(evaluate_metrics.__file__).parent / folder), keep_in_memory=True)
    assert type(loaded).__name__ == metric.__name__
    right = [list(one) for one in RIGHT]
    names = [f"{metric.metric}@{k}" for k in (1, 2, 50)]
    expected = {name: values.mean() for name, values in measure(judge(RANKED, right), names).items()}
    for one in (metric(keep_in_memory=True), loaded):
        assert one.compute(predictions=RANKED, references=right, ks=(1, 2, 50)) == expected
        assert len(one.compute(predictions=RANKED, references=right)) == 3
