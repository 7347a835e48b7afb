"""The ablation: every arm is a recipe, and its table says what the runs say."""

import argparse
import importlib.util
import json
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from umarvel_hf.data import MBeir
from umarvel_hf.emoji import benchmark_dir
from umarvel_hf.emoji.base import BaseSize
from umarvel_hf.encoding import load
from umarvel_hf.trainer import stages
from umarvel_hf.trainer.recipe_reader import read_recipe

CHECKOUT = Path(__file__).parents[1]


@pytest.fixture
def ablation(monkeypatch, tmp_path):
    spec = importlib.util.spec_from_file_location("ablation", CHECKOUT / "benchmarks/ablation.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "ablation", module)  # where dataclasses look for their annotations
    spec.loader.exec_module(module)
    for name in ("RESULTS", "PAGE", "PLOT"):
        monkeypatch.setattr(module, name, tmp_path / name)
    return module


def line(ablation, arm, seed, hits):
    """A run whose queries have these hits, in every cell."""
    cells = {
        f"{group} {pool} {metric}" for group in ablation.SETS for pool in ablation.POOLS for metric in ablation.METRICS
    }
    return {
        "arm": arm,
        "seed": seed,
        "cpu_seconds": 600 + seed,
        "queries": dict.fromkeys(ablation.SETS, len(hits)),
        "hits": dict.fromkeys(cells, ablation.packed(hits)),
        "follows": ablation.digest(arm),
    }


def test_what_ships_starts_as_all_arms_do():
    assert read_recipe("emoji").start.tiny == BaseSize()


def test_every_arm_is_a_recipe_and_is_compared_with_one_that_is_there(ablation, tmp_path):
    for name, arm in ablation.ARMS.items():
        path = tmp_path / "arm.yaml"
        taught = [stage | {"reranker": "folder"} if stage["kind"] == "score" else stage for stage in arm.stages]
        recipe = {"name": "arm", "seed": 1, "start": {"tiny": {}}, "stages": taught}
        path.write_text(yaml.safe_dump(recipe))
        if arm.stages:
            assert read_recipe(path).stages, name
        assert set(arm.controls) <= set(ablation.ARMS)
        before = list(ablation.ARMS)[: list(ablation.ARMS).index(name)]  # begun before it, so that it can wait for them
        assert {needed for needed, _ in arm.teachers} <= set(before)


def test_a_run_says_which_run_it_lacks(ablation, tmp_path):
    with pytest.raises(FileNotFoundError, match="run the arm 're-ranker, fused' with seed 1 first"):
        ablation.recipe_of("distillation", 2, tmp_path, None)
    judge = tmp_path / "re-ranker,-fused-1/run" / ablation.JUDGE
    judge.mkdir(parents=True)
    stages = ablation.recipe_of("distillation", 2, tmp_path, None)["stages"]
    assert [stage.get("reranker") for stage in stages] == [None, str(judge), None]
    number, _, stage = ablation.JUDGE.partition("/")[0].partition("-")
    assert ablation.ARMS[ablation.TEACHER].stages[int(number) - 1]["name"] == stage


def test_an_arm_that_starts_from_another_configuration_starts_with_the_same_weights(ablation, tmp_path):
    benchmark = MBeir(benchmark_dir())
    begun = [
        Path(ablation.start_of(name, 3, tmp_path, benchmark)["model"]) for name in ("causal attention", "last token")
    ]
    causal, last = (json.loads((folder / "config.json").read_text()) for folder in begun)
    assert {key for key in causal if causal[key] != last[key]} == {"bidirectional", "pooling"}
    assert (causal["bidirectional"], last["pooling"]) == (False, "last")
    assert len({(folder / "model.safetensors").read_bytes() for folder in begun}) == 1


def test_what_an_arm_puts_in_place_of_the_trainers_own_is_there(ablation, checkpoint):
    loss, embeddings = stages.InfoNCE(load(checkpoint)), list(torch.eye(8).reshape(2, 4, 8))
    labels = torch.tensor([[row, 7] for row in range(4)])  # one candidate is right for all rows
    unmasked = ablation.without_ids(stages.InfoNCE)(loss.model).compare(embeddings, labels)
    assert loss.compare(embeddings, labels) == 0 < unmasked == loss.compare(embeddings)
    assert callable(stages.load_reranker)


def test_a_folder_of_another_run_is_refused(ablation, tmp_path):
    assert [ablation.stamped(tmp_path / "run", "one") for _ in range(2)] == ["one", "one"]
    with pytest.raises(ValueError, match=r"run followed one, but the arm is now two\. Remove it"):
        ablation.stamped(tmp_path / "run", "two")


def test_hits_are_kept_exactly(ablation):
    hits = (np.random.default_rng(0).random(1003) < 0.3).astype(float).tolist()
    assert ablation.unpacked(ablation.packed(hits), 1003).tolist() == hits


def test_seconds_of_runs_that_were_broken_off_are_added(ablation, tmp_path):
    path = tmp_path / "seconds"
    for _ in range(2):
        with ablation.counted_seconds(path):
            begun = ablation.cpu_seconds()
            while ablation.cpu_seconds() < begun + 0.05:
                sum(range(1000))
    assert 0.1 <= float(path.read_text()) < 1


def write(ablation, **hits):
    """Results of arms, whose spaces are underscores: the hits of seed 1, seed 2, …"""
    lines = [
        line(ablation, arm.replace("_", " "), seed, one)
        for arm, of_seeds in hits.items()
        for seed, one in enumerate(of_seeds, start=1)
    ]
    ablation.RESULTS.write_text("".join(json.dumps(one) + "\n" for one in lines))


NONE, HALF, MOST = [0.0] * 200, [1.0, 0.0] * 100, [1.0] * 150 + [0.0] * 50


def test_a_difference_is_shown_only_where_queries_and_seeds_agree(ablation):
    taught = [HALF, MOST, MOST]
    write(ablation, one_stage=[NONE] * 3, progressive_transition=taught, causal_attention=taught[::-1])
    found = ablation.differences(ablation.read_results())
    better = [one for one in found if one.arm == "progressive transition"]
    assert {one.verdict for one in better} == {"better"} and better[0].test.difference == pytest.approx(2 / 3)
    assert {one.test.p_holm for one in better} == {min(1.0, len(found) / 10_001)}
    same = [one for one in found if one.arm == "causal attention"]
    assert {one.verdict for one in same} == {"no difference shown"} and not any(one.apart for one in same)
    write(ablation, progressive_transition=taught, causal_attention=[HALF, NONE, MOST])
    one = ablation.differences(ablation.read_results())[-1]
    assert one.test.verdict == "worse" and not one.apart and one.verdict == "no difference shown"


def test_two_seeds_show_nothing_by_themselves(ablation):
    write(ablation, progressive_transition=[HALF, MOST, MOST], causal_attention=[NONE, NONE])
    one = ablation.differences(ablation.read_results())[-1]
    assert one.test.verdict == "worse" and one.verdict == "no difference shown"
    assert one.seeds == 2 and one.test.difference == pytest.approx(-0.625)  # by the two that both were run with


def test_one_model_stands_against_all_seeds_of_an_arm(ablation):
    write(ablation, the_model_that_ships=[HALF], **{"the_model_that_ships,_for_longer": [MOST, MOST, MOST]})
    one = ablation.differences(ablation.read_results())[0]
    assert (one.arm, one.control, one.seeds) == (ablation.MORE, ablation.AS_IT_IS, 3)
    assert one.apart and one.verdict == "better" and one.test.difference == pytest.approx(0.25)
    write(ablation, the_model_that_ships=[MOST], **{"the_model_that_ships,_for_longer": [MOST, NONE, NONE]})
    one = ablation.differences(ablation.read_results())[0]
    assert one.test.verdict == "worse" and not one.apart and one.verdict == "no difference shown"


def test_the_model_of_a_commit_is_taken_from_it(ablation, tmp_path):
    model = ablation.shipped_at("HEAD", tmp_path)
    assert (model / "model.safetensors").read_bytes() == ablation.MODEL_THAT_SHIPS.read_bytes()
    assert {path.name for path in model.iterdir()} >= {"modules.json", "sentence_transformers_umarvel.py"}


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"follows": "0" * 12}, "'one stage', seed 2, followed 000000000000, but the arm is now .*. Remove the line"),
        ({"arm": "no stage"}, "'no stage', seed 2, followed .*, but the arm is now no arm"),
        ({"seed": 1}, "line 2: 'one stage', seed 1, is there twice. Remove the line"),
    ],
)
def test_a_line_that_is_no_run_of_an_arm_is_refused(ablation, changed, told):
    write(ablation, one_stage=[HALF])
    other = json.dumps(line(ablation, "one stage", 2, HALF) | changed)
    ablation.RESULTS.write_text(ablation.RESULTS.read_text() + other + "\n")
    with pytest.raises(ValueError, match=told):
        ablation.read_results()


def test_the_results_that_are_kept_are_of_the_arms_as_they_are(ablation, monkeypatch):
    monkeypatch.setattr(ablation, "RESULTS", CHECKOUT / "benchmarks/ablation.jsonl")
    assert len(ablation.read_results()) > 10


def test_no_run_begins_after_one_that_failed(ablation, monkeypatch, tmp_path):
    begun = []

    def fail(command, **_):
        begun.append(command)
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(ablation.subprocess, "run", fail)
    chosen = argparse.Namespace(out=tmp_path, arms=list(ablation.ARMS), seeds=(1,), jobs=1)
    with pytest.raises(RuntimeError, match=r"one stage, seed 1: see .*one-stage-1.log"):
        ablation.run_all(chosen)
    assert len(begun) == 1


def test_the_table_says_what_was_run(ablation, capsys):
    write(ablation, one_stage=[[1.0, 0.0, 0.0, 0.0]], progressive_transition=[[1.0, 1.0, 1.0, 0.0]])
    ablation.PAGE.write_text(f"Before.\n{ablation.BEGIN}old\n{ablation.END}Behind.\n")
    ablation.show(ablation.read_results())
    table = capsys.readouterr().out.strip()
    assert ablation.PAGE.read_text() == f"Before.\n{ablation.BEGIN}\n{table}\n\n{ablation.END}Behind.\n"
    assert "| one stage | 1 | 601 | 25.0 / 25.0 |" in table
    assert "| progressive transition | one stage | 1 | S | +50.0 [" in table
    assert "progressive transition, S" in ablation.PLOT.read_text()


def test_a_page_without_a_place_for_the_tables_is_left_alone(ablation):
    write(ablation, one_stage=[HALF])
    ablation.PAGE.write_text(f"Before.\n{ablation.BEGIN}old\nBehind.\n")
    with pytest.raises(ValueError, match="lacks one of the lines between which the tables belong"):
        ablation.show(ablation.read_results())
    assert ablation.PAGE.read_text().endswith("Behind.\n")


@pytest.mark.slow
def test_the_model_that_ships_is_the_run_that_made_it(ablation, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(CHECKOUT / "benchmarks")
    monkeypatch.setattr(ablation, "RESULTS", CHECKOUT / "benchmarks/ablation.jsonl")
    run = ablation.read_results()[ablation.SHIPPED][1]
    now = ablation.run(ablation.AS_IT_IS, 1, tmp_path)
    for cell in product(ablation.SETS, ablation.POOLS, ablation.METRICS):
        hits, before = (ablation.hits_of({1: one}, cell) for one in (now, run))
        assert np.mean(hits != before) < 0.005, cell  # of another machine, near ties fall otherwise
