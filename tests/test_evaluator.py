"""Evaluation inside training: a slice of the benchmark, the evaluation's own numbers, and a training left untouched."""

import csv
import random
import re

import numpy as np
import pytest
import torch
from datasets import Dataset

from colours import COLOURS, write_benchmark
from mbeir import write_mbeir
from umarvel_hf.data import MBeir
from umarvel_hf.encoding import load
from umarvel_hf.evaluation.benchmark import evaluate_benchmark
from umarvel_hf.evaluation.results import MODEL
from umarvel_hf.trainer.arguments import UMarvelTrainingArguments
from umarvel_hf.trainer.evaluator import RetrievalEvaluator
from umarvel_hf.trainer.trainer import UMarvelTrainer
from umarvel_hf.trainer.views import Slice


def as_val(root):
    """Make the test split the validation split."""
    for kind in ("query", "qrels"):
        (root / kind / "test").rename(root / kind / "val")
    for path in list(root.rglob("mbeir_*_test*")):
        path.rename(path.with_name(re.sub("_test", "_val", path.name)))
    return root


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    return MBeir(as_val(write_benchmark(tmp_path_factory.mktemp("colours"))))


@pytest.fixture(scope="module")
def mbeir(tmp_path_factory):
    root = tmp_path_factory.mktemp("mbeir")
    known = write_mbeir(root)
    return known, MBeir(as_val(root))


def train(model, out, *, evaluator=None, **settings):
    """Six steps; with an evaluator it is asked at every second."""
    arguments = UMarvelTrainingArguments(
        str(out),
        per_device_train_batch_size=4,
        max_steps=6,
        learning_rate=1e-3,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        **{"eval_strategy": "steps", "eval_steps": 2} if evaluator else {},
        **{"save_strategy": "no", **settings},
    )
    rows = Dataset.from_dict({"query": [f"a {one}" for one in COLOURS], "positive": [f"the {one}" for one in COLOURS]})
    trainer = UMarvelTrainer(model=model, args=arguments, train_dataset=rows, evaluator=evaluator)
    trainer.train()
    return trainer


# The slice


def test_a_slice_holds_all_right_answers_and_a_draw_of_the_rest(mbeir):
    _, data = mbeir
    small = Slice(data, queries_per_task=5, candidates_per_task=20)
    for task in data.tasks("val"):
        whole, kept = data.queries(task, "val"), small.queries(task, "val")
        assert len(kept) == 5 and kept == [query for query in whole if query in kept]
        qrels, pool = small.qrels(task, "val"), small.pool(task, "val")
        assert qrels == {query.qid: data.qrels(task, "val")[query.qid] for query in kept}
        assert len(pool) == 20 and all(did in pool for one in qrels.values() for did in one)
        assert list(pool) == [did for did in data.pool(task, "val") if did in pool]
        assert list(Slice(MBeir(data.root), queries_per_task=5, candidates_per_task=20).pool(task, "val")) == list(pool)
    assert not small.has_union_pool("val")


def test_right_answers_stay_though_they_are_more_than_asked_for(mbeir):
    _, data = mbeir
    task = data.tasks("val")[0]
    least = Slice(data, queries_per_task=12, candidates_per_task=1)
    right = {did for one in data.qrels(task, "val").values() for did in one}
    assert set(least.pool(task, "val")) == right
    all_of_it = Slice(data, queries_per_task=100, candidates_per_task=1000)
    assert all_of_it.queries(task, "val") == data.queries(task, "val")
    assert list(all_of_it.pool(task, "val")) == list(data.pool(task, "val"))


def test_a_slice_of_everything_measures_like_the_benchmark(mbeir):
    known, data = mbeir
    everything = Slice(data, queries_per_task=100, candidates_per_task=1000)
    results = [evaluate_benchmark(known, one, suite="m-beir", split="val") for one in (data, everything)]
    assert results[0].tasks == results[1].tasks


# The evaluator


def test_the_values_are_those_of_the_evaluation_of_the_slice(mbeir, colours, embedder, tmp_path):
    evaluator = RetrievalEvaluator(colours, queries_per_task=4, candidates_per_task=5, name="tiny")
    found = evaluator(embedder, str(tmp_path / "eval"), 0.5, 3)
    result = evaluate_benchmark(embedder, evaluator.slice, split="val", baselines=False)
    assert {len(task.qids) for task in result.tasks} == {4} and result.tasks[0].pool_sizes == {"local": 5, "union": 15}
    for pool in ("local", "union"):
        for metric in ("hit@1", "hit@5", "hit@10", "ndcg@10"):
            mean = np.mean([task.rate(MODEL, pool, metric) for task in result.tasks])
            assert found[f"tiny_{pool}_{metric}"] == pytest.approx(mean)
        assert found[f"tiny_plain_{pool}_score"] == pytest.approx(result.mean("plain", MODEL, pool))
        assert found[f"tiny_dark_task4_{pool}_hit@5"] == pytest.approx(result.tasks[0].rate(MODEL, pool))
    assert evaluator.primary_metric == "tiny_union_hit@5" and evaluator.primary_metric in found
    assert all(type(value) is float for value in found.values())
    evaluator(embedder, str(tmp_path / "eval"), 1.0, 6)
    with (tmp_path / "eval/Retrieval_evaluation_tiny_results.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [(line["epoch"], line["steps"]) for line in lines] == [("0.5", "3"), ("1.0", "6")]
    assert float(lines[1]["tiny_union_ndcg@10"]) == found["tiny_union_ndcg@10"]


def test_local_pools_alone_make_the_local_hit_rate_the_first(colours, embedder):
    evaluator = RetrievalEvaluator(colours, pools=["local"])
    found = evaluator(embedder)
    assert evaluator.primary_metric == "local_hit@5" in found
    assert not [name for name in found if "union" in name]


def test_modes_and_random_states_stay_as_they_were(colours, checkpoint):
    model = load(checkpoint)
    model.train()
    model[0].model.similarity.eval()
    modes = [module.training for module in model.modules()]
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    RetrievalEvaluator(colours)(model)
    assert [module.training for module in model.modules()] == modes and True in modes and False in modes
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (random.getstate(), np.random.get_state()[1].tolist())


def test_a_split_that_is_not_there_is_refused_at_once(colours):
    with pytest.raises(FileNotFoundError, match="no validation queries"):
        RetrievalEvaluator(colours, split="validation")
    with pytest.raises(ValueError, match="queries_per_task is 0, candidates_per_task 1000; give at least 1"):
        RetrievalEvaluator(colours, queries_per_task=0)


def test_a_training_that_is_evaluated_ends_with_the_weights_of_one_that_is_not(colours, checkpoint, tmp_path):
    plain, watched = load(checkpoint), load(checkpoint)
    train(plain, tmp_path / "plain")
    evaluator = RetrievalEvaluator(colours, queries_per_task=4)
    trainer = train(watched, tmp_path / "watched", evaluator=evaluator)
    for (name, one), other in zip(plain.named_parameters(), watched.parameters(), strict=True):
        assert torch.equal(one, other), name
    entries = [entry for entry in trainer.state.log_history if "eval_union_hit@5" in entry]
    assert [entry["step"] for entry in entries] == [2, 4, 6]
    assert len({entry["eval_union_ndcg@10"] for entry in entries}) > 1  # it is the model in training that is measured
    result = evaluate_benchmark(watched, evaluator.slice, split="val", baselines=False)
    mean = np.mean([task.rate(MODEL, "union", "ndcg@10") for task in result.tasks])
    assert entries[-1]["eval_union_ndcg@10"] == pytest.approx(mean)


def test_the_best_checkpoint_by_a_metric_is_loaded_at_the_end(colours, checkpoint, tmp_path):
    model = load(checkpoint)
    trainer = train(
        model,
        tmp_path / "run",
        evaluator=RetrievalEvaluator(colours),
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_local_ndcg@10",
    )
    values = {
        entry["step"]: entry["eval_local_ndcg@10"]
        for entry in trainer.state.log_history
        if "eval_local_ndcg@10" in entry
    }
    assert trainer.state.best_metric == max(values.values())
    best = load(trainer.state.best_model_checkpoint)
    for (name, one), other in zip(best.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(one, other), name
