"""Runs: every stage follows the one before, and however often a run is killed, it ends with the same weights."""

import csv
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from importlib.resources import files
from pathlib import Path
from unittest.mock import ANY

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoConfig, AutoProcessor, Qwen2Config, Trainer

from colours import COLOURS, TINY_RECIPE, TRAINING, write_benchmark, write_lines, write_training_split
from umarvel_hf.checkpoint import new_model
from umarvel_hf.data import MBeir
from umarvel_hf.emoji import benchmark_dir
from umarvel_hf.encoding import encode, load
from umarvel_hf.fetch import Unreachable
from umarvel_hf.negatives import NegativeTable
from umarvel_hf.reranker_checkpoint import new_reranker
from umarvel_hf.trainer.estimate import describe
from umarvel_hf.trainer.losses import DistillKL, InfoNCE
from umarvel_hf.trainer.recipe import Mine, Training
from umarvel_hf.trainer.recipe_reader import read_recipe
from umarvel_hf.trainer.run import train
from umarvel_hf.trainer.stages import run_stage
from umarvel_hf.trainer.trainer import UMarvelTrainer

LORA = {"r": 4, "alpha": 8}
KILLED_RUN = Path(__file__).parent / "killed_run.py"


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    return MBeir(write_training_split(write_benchmark(tmp_path_factory.mktemp("data")), repeats=2))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory, benchmark):
    """A csv of sentences with hard negatives and a jsonl of captions."""
    folder = tmp_path_factory.mktemp("pairs")
    names = list(COLOURS)
    with (folder / "nli.csv").open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["sent0", "sent1", "hard_neg"])
        lines.writerows(
            [f"a {one}", f"it is {one}", f"it is {other}"] for one, other in zip(names, names[::-1], strict=True)
        )
    captions = [
        {"text": f"a {name} square", "image": str(benchmark.root / f"mbeir_images/plain_{name}.png")} for name in names
    ]
    write_lines(folder / "captions.jsonl", captions)
    return folder


def every_stage(pairs, steps=3):
    """A recipe of all kinds of stages, with adapters and without."""
    training = {**TRAINING, "max_steps": steps, "save_steps": 2}
    chat = {"shift": 0.1, "scale": 0.1, "colour": 0.3, "greyscale": 0.1}
    captions = {"captions": str(pairs / "captions.jsonl")}
    return [
        {"name": "texts", "kind": "contrastive", "data": [{"nli": str(pairs / "nli.csv"), "negatives": True}],
         "temperature": "fixed", "lora": LORA, "training": training},
        {"name": "all", "kind": "contrastive", "data": [{"mbeir": "all"}, captions], "batches": 3, "symmetric": True,
         "augmentation": chat, "training": {**training, "mini_batch_size": 4}},
        {"name": "mined", "kind": "mine", "depth": 18},
        {"name": "hard", "kind": "hard_negatives",
         "negatives": {"table": "mined", "union": 2, "local": 1, "wrong_modality": 1},
         "remine_every_steps": 2, "training": training},
        {"name": "judge", "kind": "reranker", "table": "mined", "lora": LORA,
         "training": {key: value for key, value in training.items() if key != "learning_rate"}},
        {"name": "again", "kind": "mine", "depth": 8, "share": 0.7, "pools": ["local"]},
        {"name": "taught", "kind": "score", "table": "again", "reranker": "judge", "top": 5, "weight": 0.5},
        {"name": "distilled", "kind": "distill", "table": "taught", "top": 4, "infonce_weight": 0.2, "lora": LORA,
         "training": training},
    ]  # fmt: skip


@pytest.fixture
def recipe(tmp_path):
    """``recipe(key=value)``: the file of a tiny recipe with some keys changed."""

    def write(**changed):
        (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({**TINY_RECIPE, **changed}))
        return tmp_path / "tiny.yaml"

    return write


def test_queries_of_some_groups_are_mined(recipe, benchmark, tmp_path):
    stages = [{"name": "mined", "kind": "mine", "depth": 18, "groups": ["1 task 0"], "pools": ["local"]}]
    train(recipe(stages=stages), tmp_path / "run", benchmark=benchmark)
    asked = {query.qid for query in benchmark.train_queries() if query.group == "1 task 0"}
    assert set(NegativeTable.open(tmp_path / "run/1-mined/local.parquet").qids) == asked


def test_mining_queries_of_a_group_that_is_not_there_is_refused(recipe, benchmark, tmp_path):
    path = recipe(stages=[{"name": "mined", "kind": "mine", "groups": ["1 task 0", "9 task 0"]}])
    with pytest.raises(ValueError, match=r"stage mined: .*train.jsonl has no queries of \['9 task 0'\]; name others"):
        train(path, tmp_path / "run", benchmark=benchmark)


@pytest.fixture
def kill_at(monkeypatch):
    """``kill_at(step)``: the next training ends where that step would begin; ``kill_at(None)``: it is left alone."""
    whole = UMarvelTrainer.training_step

    def arrange(step):
        def training_step(self, *args, **kwargs):
            if self.state.global_step == step:
                raise KeyboardInterrupt
            return whole(self, *args, **kwargs)

        monkeypatch.setattr(UMarvelTrainer, "training_step", training_step)

    return arrange


def weights(folder):
    return load_file(folder / "model.safetensors")


def assert_same(left, right):
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


def losses(folder, step):
    state = json.loads((folder / f"checkpoints/checkpoint-{step}/trainer_state.json").read_text())
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]


def history_of(run):
    return [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]


def test_a_run_killed_twice_ends_with_the_weights_of_an_unbroken_one(benchmark, recipe, tmp_path, kill_at):
    path, unbroken, broken = recipe(), tmp_path / "unbroken", tmp_path / "broken"
    assert train(path, unbroken, benchmark=benchmark) == unbroken / "model"
    stage = broken / "1-instructions"
    for step in (6, 13):  # the first in the middle of an epoch's steps and of those between two checkpoints
        kill_at(step)
        with pytest.raises(KeyboardInterrupt):
            train(path, broken, benchmark=benchmark)
        assert not (stage / "model").exists() and not (broken / "model").exists()
    # A checkpoint and a model that were being written when the run was killed.
    (stage / "checkpoints/checkpoint-13").mkdir()
    (stage / "checkpoints/checkpoint-13/config.json").write_text("{")
    for folder in (stage, broken):
        (folder / "model.unfinished").mkdir()
        (folder / "model.unfinished/sentence_bert_config.json").write_text("{")
    kill_at(None)
    train(path, broken, benchmark=benchmark)
    assert losses(unbroken / "1-instructions", 14) == losses(stage, 14) and len(losses(stage, 14)) == 14
    assert_same(weights(unbroken / "model"), weights(broken / "model"))
    assert not list(broken.rglob("*.unfinished"))
    vectors = encode(load(str(broken / "model"), device="cpu"), ["red.", next(iter(benchmark.root.rglob("*.png")))])
    assert vectors.shape == (2, 32)


def test_a_run_killed_while_it_wrote_its_start_begins_again(benchmark, recipe, tmp_path):
    path = recipe()
    train(path, tmp_path / "whole", benchmark=benchmark, max_steps=1)
    train(path, tmp_path / "cut", benchmark=benchmark, max_steps=1)
    manifest = tmp_path / "cut/start/manifest.json"
    manifest.write_text(manifest.read_text().replace('"finished": true', '"finished": false'))
    (tmp_path / "cut/start/model/config.json").write_text("{")
    for stale in ("1-instructions", "model"):
        shutil.rmtree(tmp_path / "cut" / stale)
    train(path, tmp_path / "cut", benchmark=benchmark, max_steps=1)
    assert_same(weights(tmp_path / "cut/model"), weights(tmp_path / "whole/model"))


def test_a_finished_run_is_not_trained_again(benchmark, recipe, tmp_path, kill_at, caplog):
    model = train(recipe(), tmp_path / "run", benchmark=benchmark, max_steps=1)
    kill_at(0)
    with caplog.at_level("INFO", logger="umarvel_hf"):
        assert train(recipe(), tmp_path / "run", benchmark=benchmark, max_steps=1) == model
    assert "stage instructions is finished" in caplog.text


def test_training_starts_from_the_seeds_weights_and_moves_them_and_the_temperature(benchmark, recipe, tmp_path):
    for out, seed in (("one", 3), ("other", 4)):
        train(recipe(seed=seed), tmp_path / out, benchmark=benchmark, max_steps=2)
    start, trained, other = (weights(tmp_path / name) for name in ("one/start/model", "one/model", "other/start/model"))
    moved = [name for name in start if not torch.equal(start[name], trained[name])]
    assert "similarity.log_temperature" in moved and len(moved) > len(start) / 2
    assert any(not torch.equal(start[name], other[name]) for name in start)


@pytest.fixture(scope="module")
def whole(benchmark, pairs, tmp_path_factory):
    """The folder of an unbroken run of all kinds of stages."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "every.yaml").write_text(yaml.safe_dump({**TINY_RECIPE, "stages": every_stage(pairs)}))
    train(folder / "every.yaml", folder / "run", benchmark=benchmark)
    return folder


def test_every_stage_leaves_a_loadable_checkpoint_and_a_line_of_history(whole):
    history = history_of(whole / "run")
    names = ["texts", "all", "mined", "hard", "judge", "again", "taught", "distilled"]
    assert [line["stage"] for line in history] == names
    temperatures = {}
    for number, name in enumerate(names, start=1):
        folder = whole / "run" / f"{number}-{name}"
        if name in ("texts", "all", "hard", "distilled"):
            model = load(str(folder / "model"), device="cpu")
            temperatures[name] = model[0].model.similarity.temperature.item()
            assert encode(model, ["red."]).shape == (1, 32)
    assert temperatures["texts"] == pytest.approx(0.05, abs=1e-7)  # fixed there
    assert len(set(temperatures.values())) == 4  # and learned, each stage going on from the last
    for line in history:
        if line["stage"] in temperatures:
            assert line["temperature"] == pytest.approx(temperatures[line["stage"]], abs=1e-6)
    assert_same(weights(whole / "run/model"), weights(whole / "run/8-distilled/model"))


def test_the_card_tells_the_stages_and_their_data(whole, benchmark):
    card = (whole / "run/model/README.md").read_text(encoding="utf-8")
    noted = {line["stage"]: line for line in history_of(whole / "run")}
    for name, kind in {"texts": "contrastive", "hard": "hard_negatives", "distilled": "distill"}.items():
        cells = [f"{noted[name][key]:.3g}" for key in ("steps", "last_loss", "temperature")]
        assert f"| {name} | {kind} | {' | '.join(cells)} |  |  |\n" in card
    assert "| mined | mine |  |  |  |  |  |\n" in card
    assert f"| judge | reranker | {noted['judge']['steps']} | {noted['judge']['last_loss']:.3g} |  |  |  |\n" in card
    recipe = (whole / "every.yaml").read_bytes()
    assert f"sha256 `{hashlib.sha256(recipe).hexdigest()}`" in card
    assert "Not measured." in card and "![" not in card
    assert f"learned from `nli.csv`, `captions.jsonl`, `{benchmark.root.name}`. " in card
    assert (whole / "every.yaml").read_text() in card


def test_stages_hand_on_what_they_found(whole, benchmark):
    taught = NegativeTable.open(whole / "run/7-taught/local.parquet")
    again = NegativeTable.open(whole / "run/6-again/local.parquet")
    assert taught.qids == again.qids and 0 < len(again) < 36
    for one in taught:
        assert one.teacher_scores == pytest.approx(2 * (one.scores[:5] + 0.5 * one.answers) / 1.5)
    assert [path.name for path in (whole / "run/4-hard/mined").iterdir()] == ["epoch-1"]


def test_a_reranker_of_another_run_judges_alike(whole, benchmark, recipe, tmp_path):
    again, taught = every_stage(whole)[5:7]
    stages = [again, {**taught, "reranker": str(whole / "run/5-judge/model")}]
    start = {"model": str(whole / "run/4-hard/model")}
    train(recipe(start=start, stages=stages), tmp_path / "run", benchmark=benchmark)
    here, there = tmp_path / "run/2-taught/local.parquet", whole / "run/7-taught/local.parquet"
    for ours, theirs in zip(NegativeTable.open(here), NegativeTable.open(there), strict=True):
        assert ours.qid == theirs.qid and ours.dids == theirs.dids
        assert ours.answers == pytest.approx(theirs.answers, abs=1e-6)
    stages[1]["reranker"] = str(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match=r"gone' does not exist"):
        train(recipe(start=start, stages=stages), tmp_path / "other", benchmark=benchmark)
    assert not (tmp_path / "other/1-again").exists()


def test_a_run_killed_once_in_every_training_ends_alike(whole, benchmark, tmp_path, monkeypatch):
    training_step, killed = Trainer.training_step, []

    def killed_at_two(self, *args, **kwargs):
        if self.state.global_step == 2 and self.args.output_dir not in killed:
            killed.append(self.args.output_dir)
            raise KeyboardInterrupt
        return training_step(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "training_step", killed_at_two)
    for _ in range(5):
        with pytest.raises(KeyboardInterrupt):
            train(whole / "every.yaml", tmp_path / "run", benchmark=benchmark)
    train(whole / "every.yaml", tmp_path / "run", benchmark=benchmark)
    assert len(killed) == 5
    assert_same(weights(tmp_path / "run/model"), weights(whole / "run/model"))


def test_every_stage_of_the_shipped_recipe_runs(tmp_path, monkeypatch):
    """Five steps of each, on a part of the embedded benchmark; only SNLI, which must be fetched, is another text."""
    (tmp_path / "nli.csv").write_text("sent0,sent1,hard_neg\n" + "a red heart,it is red,it is blue\n" * 20)
    monkeypatch.setattr("umarvel_hf.trainer.stages.snli", lambda _cache: tmp_path / "nli.csv")
    model = train("emoji-full", tmp_path / "run", benchmark=MBeir(benchmark_dir()), max_steps=5)
    history = {one["stage"]: one for one in history_of(tmp_path / "run")}
    recipe = read_recipe("emoji-full")
    assert list(history) == [stage.name for stage in recipe.stages]
    assert all(history[stage.name]["steps"] == 5 for stage in recipe.stages if isinstance(stage, Training))
    assert len(NegativeTable.open(tmp_path / "run/8-taught/local.parquet")) > 30
    assert encode(load(str(model), device="cpu"), ["a red heart"]).shape == (1, 128)


def test_a_stage_whose_data_cannot_be_fetched_is_left_out_where_the_recipe_allows(
    benchmark, recipe, tmp_path, monkeypatch, caplog
):
    def snli(_cache):
        raise Unreachable("cannot download it")

    monkeypatch.setattr("umarvel_hf.trainer.stages.snli", snli)
    texts = {"name": "texts", "kind": "contrastive", "data": [{"nli": "snli"}], "training": TRAINING}
    stages = [{**texts, "optional": True}, *TINY_RECIPE["stages"]]
    train(recipe(stages=stages), tmp_path / "run", benchmark=benchmark, max_steps=1)
    first, second = history_of(tmp_path / "run")
    assert first == {"stage": "texts", "left_out": "cannot download it", "seconds_since_last_start": ANY}
    assert second["stage"] == "instructions" and second["steps"] == 1
    assert "stage texts is left out" in caplog.text
    with pytest.raises(Unreachable):
        train(recipe(stages=[texts]), tmp_path / "other", benchmark=benchmark, max_steps=1)


@pytest.mark.slow
def test_a_run_killed_at_any_moment_ends_with_the_weights_of_an_unbroken_one(whole, benchmark, tmp_path):
    """Six moments uniform over the time that a run takes, and one uniform over each of four phases."""

    def follow(out, *moment):
        log = tmp_path / f"{out}.json"
        command = [sys.executable, KILLED_RUN, whole / "every.yaml", benchmark.root, tmp_path / out, log, *moment]
        done = subprocess.run(list(map(str, command)), env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True)
        assert done.returncode in ((0, -signal.SIGKILL) if moment else (0,)), done.stderr[-3000:]
        return json.loads(log.read_text())

    unbroken = follow("unbroken")
    wanted = weights(tmp_path / "unbroken/model")
    assert_same(wanted, weights(whole / "run/model"))
    draw = random.Random(0)
    moments = [(draw.uniform(0, unbroken["seconds"]),) for _ in range(6)]
    moments += [(phase, draw.randint(1, looks)) for phase, looks in sorted(unbroken["looks"].items())]
    assert len(moments) == 10
    hit = Counter()
    for number, moment in enumerate(moments):
        while "stack" not in (killed := follow(f"killed-{number}", *moment)):  # this time it was faster
            shutil.rmtree(tmp_path / f"killed-{number}")
            moment = (*moment[:-1], type(moment[-1])(0.8 * moment[-1]))
        hit.update(killed["phases"])
        print(f"{moment}: killed after {killed['seconds']} s in {killed['phases']}: {' '.join(killed['stack'])}")
        follow(f"killed-{number}")
        assert_same(weights(tmp_path / f"killed-{number}/model"), wanted)
        assert history_of(tmp_path / f"killed-{number}")[-1]["stage"] == "distilled"
        assert not list((tmp_path / f"killed-{number}").rglob("*.unfinished"))
    assert set(hit) == {"training", "mining", "merging", "writing"}


def test_a_run_may_start_from_a_checkpoint_of_ours(benchmark, recipe, checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stages = [{**TINY_RECIPE["stages"][0], "lora": LORA}]
    path = recipe(stages=stages, start={"model": str(checkpoint)}, max_pixels=784 * 8)
    assert "parameters" in describe(path, Path("run"), benchmark=benchmark)
    train(path, Path("run"), benchmark=benchmark, max_steps=1)
    assert_same(weights(tmp_path / "run/start/model"), weights(checkpoint))
    assert AutoProcessor.from_pretrained(tmp_path / "run/start/model").image_processor.size.longest_edge == 784 * 8
    monkeypatch.chdir(tmp_path.parent)  # goes on from wherever it is called
    shutil.rmtree(tmp_path / "run/model")
    model = train(path, tmp_path / "run", benchmark=benchmark, max_steps=1)
    moved = [name for name, weight in weights(model).items() if not torch.equal(weight, weights(checkpoint)[name])]
    assert moved and all("layers" in name or "similarity" in name for name in moved)


def test_the_card_of_a_re_ranker_names_no_file_of_the_training(whole):
    card = (whole / "run/5-judge/model/README.md").read_text()
    assert "re-ranker" in card and str(whole) not in card and "mbeir_images" not in card


TORCHRUN = ("torch.distributed.run", "--nproc_per_node", 2, "--standalone", "-m", "umarvel_hf.cli")
SPLIT = files("umarvel_hf.recipes") / "accelerate/fsdp2.yaml"
FSDP = ("accelerate.commands.launch", "--config_file", SPLIT, "--mixed_precision", "no", "--num_processes", 2)
FSDP += ("--main_process_port", 0, Path(__file__).with_name("split_on_ranks.py"), "umarvel_hf.cli")


@pytest.mark.slow
@pytest.mark.parametrize("launch", [TORCHRUN, FSDP], ids=["copied", "split"])
def test_two_ranks_follow_a_recipe_as_one_does(pairs, benchmark, recipe, tmp_path, launch):
    for ranks, program in ((1, ["umarvel_hf.cli"]), (2, launch)):
        stages = every_stage(pairs)
        for stage in stages:
            if "training" in stage:
                # Adam would make whole steps of gradients that are nothing but rounding.
                changed = {"per_device_train_batch_size": 6 // ranks, "adam_epsilon": 1e-3}
                stage["training"] = {**stage["training"], **changed}
            if "lora" in stage:
                stage["lora"] = {**LORA, "dropout": 0.0}
            if launch is FSDP:
                stage.pop("remine_every_steps", None)  # refused
        command = [sys.executable, "-m", *program, "train", recipe(stages=stages)]
        command += ["--data", benchmark.root, "--out", tmp_path / str(ranks)]
        done = subprocess.run(list(map(str, command)), env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True)
        assert done.returncode == 0, done.stderr[-3000:]
    for stage in ("1-texts", "2-all", "4-hard", "5-judge", "8-distilled"):
        one, two = (weights(tmp_path / str(ranks) / stage / "model") for ranks in (1, 2))
        worst = max((one[name] - two[name]).abs().max().item() for name in one)
        print(f"{stage}: largest difference of a weight: {worst:.1e}")
        assert worst < 1e-5


def test_another_recipe_in_the_same_folder_is_refused_with_both_values(benchmark, recipe, tmp_path):
    train(recipe(), tmp_path / "run", benchmark=benchmark, max_steps=1)
    stages = [{**TINY_RECIPE["stages"][0], "batches": 3, "training": {**TRAINING, "learning_rate": 0.5}}]
    with pytest.raises(ValueError, match=r"1-instructions was begun with other settings: batches was 2 and is 3; .*"
                                         r"training.learning_rate was 0.002 and is 0.5"):  # fmt: skip
        train(recipe(stages=stages), tmp_path / "run", benchmark=benchmark, max_steps=1)


def test_a_stage_that_runs_again_makes_the_model_anew(benchmark, recipe, tmp_path):
    first = TINY_RECIPE["stages"][0]
    stages = [first, {**first, "name": "second"}]
    train(recipe(stages=stages), tmp_path / "run", benchmark=benchmark, max_steps=1)
    before = weights(tmp_path / "run/model")
    shutil.rmtree(tmp_path / "run/2-second")
    stages[1] = {**stages[1], "training": {**TRAINING, "learning_rate": 0.01}}
    train(recipe(stages=stages), tmp_path / "run", benchmark=benchmark, max_steps=1)
    assert_same(weights(tmp_path / "run/model"), weights(tmp_path / "run/2-second/model"))
    assert any(not torch.equal(before[name], weight) for name, weight in weights(tmp_path / "run/model").items())
    train(recipe(stages=stages[:1]), tmp_path / "run", benchmark=benchmark, max_steps=1)
    assert_same(weights(tmp_path / "run/model"), weights(tmp_path / "run/1-instructions/model"))


def test_a_finished_stage_without_its_results_is_not_passed_over(benchmark, recipe, tmp_path):
    train(recipe(), tmp_path / "run", benchmark=benchmark, max_steps=1)
    shutil.rmtree(tmp_path / "run/1-instructions/model")
    with pytest.raises(FileNotFoundError, match=r"Stage instructions is finished, but .*model/config.json is gone"):
        train(recipe(), tmp_path / "run", benchmark=benchmark, max_steps=1)


@pytest.mark.parametrize("name", ["start", "1-instructions", "model"])
def test_files_of_others_in_the_folder_of_a_run_are_left_alone(benchmark, recipe, tmp_path, name):
    (tmp_path / "run" / name).mkdir(parents=True)
    (tmp_path / "run" / name / "precious").write_text("mine")
    with pytest.raises(FileExistsError, match=rf"run/{name}.* is left alone\. Name another --out"):
        train(recipe(), tmp_path / "run", benchmark=benchmark, max_steps=1)
    assert {path.name for path in (tmp_path / "run").rglob("*") if path.is_file()} == {"precious", ".lock"}


def test_what_cannot_be_measured_is_refused_before_anything_runs(benchmark, recipe, tmp_path):
    path = recipe(evaluation={"queries_per_task": 2, "candidates_per_task": 4})
    for call in (train, describe):
        with pytest.raises(FileNotFoundError, match=r"query/val holds no .*_val.jsonl"):
            call(path, tmp_path / "run", benchmark=benchmark)
    assert not (tmp_path / "run").exists()


def test_a_later_stage_that_changed_is_refused_before_an_earlier_one_runs(benchmark, recipe, tmp_path):
    first = TINY_RECIPE["stages"][0]
    train(recipe(stages=[first, {**first, "name": "second"}]), tmp_path / "run", benchmark=benchmark, max_steps=1)
    known = (tmp_path / "run/recipe.yaml").read_bytes()
    shutil.rmtree(tmp_path / "run/1-instructions")
    changed = {**first, "name": "second", "symmetric": True}
    with pytest.raises(ValueError, match=r"2-second was begun with other settings: symmetric was false and is true"):
        train(recipe(stages=[first, changed]), tmp_path / "run", benchmark=benchmark, max_steps=1)
    assert not (tmp_path / "run/1-instructions").exists() and (tmp_path / "run/recipe.yaml").read_bytes() == known


def test_what_shapes_no_weight_may_change(benchmark, recipe, tmp_path):
    train(recipe(), tmp_path / "run", benchmark=benchmark, max_steps=1)
    stages = [{**TINY_RECIPE["stages"][0]}]
    stages[0]["training"] = {**stages[0]["training"], "logging_steps": 5, "save_steps": 2}
    assert train(recipe(stages=stages), tmp_path / "run", benchmark=benchmark, max_steps=1) == Path(
        tmp_path / "run/model"
    )


def test_training_data_that_changed_are_refused(recipe, tmp_path):
    data = MBeir(write_training_split(write_benchmark(tmp_path / "data"), repeats=2))
    train(recipe(), tmp_path / "run", benchmark=data, max_steps=1)
    path = data.root / "query/union_train/mbeir_union_up_train.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(ValueError, match=r"begun with other settings: input .*mbeir_union_up_train.jsonl was"):
        train(recipe(), tmp_path / "run", benchmark=MBeir(data.root), max_steps=1)


def spoil(root):
    """One bad row of every kind in the training split."""
    path = root / "query/union_train/mbeir_union_up_train.jsonl"
    lines = path.read_text().splitlines()
    lines[0] = json.dumps({**json.loads(lines[0]), "pos_cand_list": []})
    lines[1] = json.dumps({**json.loads(lines[1]), "pos_cand_list": ["1:999"]})
    lines[2] = lines[2][:40]
    write_lines(path, lines)
    picture = root / "mbeir_images/dark_cyan.png"
    picture.write_bytes(picture.read_bytes()[:30])


def test_bad_rows_are_listed_and_every_stage_goes_on_without_them(pairs, recipe, tmp_path):
    root = write_training_split(write_benchmark(tmp_path / "data"), repeats=2)
    spoil(root)
    model = train(recipe(stages=every_stage(pairs), bad_rows="quarantine"), tmp_path / "run", benchmark=MBeir(root))
    listed = [json.loads(line) for line in (tmp_path / "run/quarantine.jsonl").read_text().splitlines()]
    assert [(Path(one["file"]).name, one["line"], one["id"]) for one in listed] == [
        ("mbeir_union_train_cand_pool.jsonl", 17, "1:15"),  # dark_cyan.png
        ("mbeir_union_up_train.jsonl", 1, "1:0"),
        ("mbeir_union_up_train.jsonl", 2, "1:100"),
        ("mbeir_union_up_train.jsonl", 3, ""),
        *[
            ("mbeir_union_up_train.jsonl", line, qid)  # those that show or look for dark_cyan.png
            for line, qid in ((11, "1:5"), (12, "1:105"), (23, "1:25"), (24, "1:125"), (35, "2:5"), (36, "2:105"))
        ],
    ]
    mined = NegativeTable.open(tmp_path / "run/3-mined/union.parquet")
    assert len(mined) == 36 - 9 and not any("1:15" in one.dids for one in mined)
    assert encode(load(str(model), device="cpu"), ["red."]).shape == (1, 32)


def test_the_first_bad_row_ends_a_run_that_shall_stop_and_mended_it_goes_on(recipe, tmp_path):
    whole, root = tmp_path / "whole", tmp_path / "data"
    for folder in (whole, root):
        write_training_split(write_benchmark(folder))
    spoil(root)
    path = "query/union_train/mbeir_union_up_train.jsonl"
    bad, good = ((folder / path).read_text().splitlines() for folder in (root, whole))
    for at, message in (
        (2, "train.jsonl:3: not JSON .* Is the file cut short"),
        (0, "train.jsonl:1: '1:0': it names no positive"),
        (1, "train.jsonl:2: '1:1': its positive '1:999' is not among"),
        (None, r"train.jsonl:\d+, query '\S+': .*dark_cyan.png' is not a picture"),
    ):
        with pytest.raises(ValueError, match=message):
            train(recipe(), tmp_path / "run", benchmark=MBeir(root))
        if at is not None:
            bad[at] = good[at]
            write_lines(root / path, bad)
            shutil.rmtree(tmp_path / "run")  # it was begun with other rows
    shutil.copyfile(whole / "mbeir_images/dark_cyan.png", root / "mbeir_images/dark_cyan.png")
    train(recipe(), tmp_path / "run", benchmark=MBeir(root))
    train(recipe(), tmp_path / "unbroken", benchmark=MBeir(whole))
    assert_same(weights(tmp_path / "run/model"), weights(tmp_path / "unbroken/model"))


def test_a_loss_that_is_no_number_ends_a_run_by_name_and_loses_nothing(benchmark, recipe, tmp_path):
    first = TINY_RECIPE["stages"][0]
    training = {**first["training"], "learning_rate": 1e30, "max_steps": 4, "save_steps": 1}
    stages = [first, {**first, "name": "wild", "training": training}]
    with pytest.raises(
        ValueError, match=r"stage wild, step 2: .* The last checkpoint is whole. Its rows: .*train.jsonl:\d+, query"
    ):
        train(recipe(stages=stages), tmp_path / "run", benchmark=benchmark)
    assert [line["stage"] for line in history_of(tmp_path / "run")] == ["instructions"]
    trained = weights(tmp_path / "run/1-instructions/model")
    # The settings of a stage that was begun cannot change; without its folder, the run goes on after the one before.
    shutil.rmtree(tmp_path / "run/2-wild")
    stages[1]["training"]["learning_rate"] = 1e-4
    train(recipe(stages=stages), tmp_path / "run", benchmark=benchmark)
    assert_same(weights(tmp_path / "run/1-instructions/model"), trained)
    assert [line["stage"] for line in history_of(tmp_path / "run")] == ["instructions", "wild"]


def test_a_loss_of_teachers_lists_that_is_no_number_is_named_too(whole, benchmark, tmp_path, monkeypatch):
    shutil.copytree(whole / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run/8-distilled")
    compare, labels = DistillKL.compare, []

    def spoilt(self, embeddings, label=None):
        labels.append(label)
        return compare(self, embeddings, label) * (torch.nan if len(labels) == 2 else 1)

    monkeypatch.setattr(DistillKL, "compare", spoilt)
    with pytest.raises(ValueError, match=r"stage distilled, step 2: .* Its rows: .*train.jsonl:\d+, query") as told:
        train(whole / "every.yaml", tmp_path / "run", benchmark=benchmark)
    table = NegativeTable.open(tmp_path / "run/7-taught/local.parquet")
    lists = [table[qid] for qid in re.findall(r"query '(\S+)'", str(told.value))]
    for mined, scores in zip(lists, labels[-1][:, 0].tolist(), strict=True):
        known = [*mined.teacher_scores, *mined.positive_teacher_scores]
        assert all(any(score == pytest.approx(one) for one in known) for score in scores)


def test_too_little_memory_ends_a_run_by_name_and_the_same_command_goes_on(benchmark, recipe, tmp_path, monkeypatch):
    first = TINY_RECIPE["stages"][0]
    path = recipe(stages=[{**first, "training": {**TRAINING, "max_steps": 4, "save_steps": 1}}])
    compare, steps = InfoNCE.compare, []

    def too_large(self, *args):
        steps.append(args)
        if len(steps) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return compare(self, *args)

    monkeypatch.setattr(InfoNCE, "compare", too_large)
    with pytest.raises(ValueError, match=r"instructions: step 3: CUDA out of memory\. Lower mini_batch_size and "):
        train(path, tmp_path / "run", benchmark=benchmark)
    train(path, tmp_path / "run", benchmark=benchmark)
    assert len(steps) == 5  # two steps, one that failed, two more


def test_too_little_memory_elsewhere_names_its_own_size(tmp_path, monkeypatch):
    def too_large(*args):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("umarvel_hf.trainer.stages._mine", too_large)
    with pytest.raises(ValueError, match=r"stage mined: CUDA out of memory\. Lower batch_tokens and remove .*2-mined"):
        run_stage(Mine(name="mined"), tmp_path / "2-mined", None)


def test_a_second_run_in_the_same_folder_is_refused_while_the_first_lasts(benchmark, recipe, tmp_path, monkeypatch):
    path, step = recipe(), UMarvelTrainer.training_step

    def training_step(self, *args, **kwargs):
        with pytest.raises(BlockingIOError, match=r"run is being filled by another process"):
            train(path, tmp_path / "run", benchmark=benchmark, max_steps=1)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(UMarvelTrainer, "training_step", training_step)
    train(path, tmp_path / "run", benchmark=benchmark, max_steps=1)
    train(path, tmp_path / "run", benchmark=benchmark, max_steps=1)


def text_model(bases, folder):
    shutil.copytree(bases("qwen2_vl"), folder, ignore=shutil.ignore_patterns("*processor*", "config.json"))
    config = AutoConfig.from_pretrained(bases("qwen2_vl")).get_text_config()
    Qwen2Config(**{name: getattr(config, name) for name in ("vocab_size", "hidden_size")}).save_pretrained(folder)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (text_model, ValueError, "has no processor of text and images .*; name a vision-language model"),
        (
            lambda bases, folder: new_reranker(bases("qwen2_vl"), folder),
            ValueError,
            "start is a re-ranker. Give an embedder's",
        ),
        (
            lambda bases, folder: new_model(bases("qwen2_vl"), folder / "model"),
            FileNotFoundError,
            "a run left .* in .*start/model: give",
        ),
    ],
    ids=["of text only", "a re-ranker", "a run"],
)
def test_a_start_that_is_no_embedders_is_refused_before_anything_runs(
    benchmark, recipe, bases, tmp_path, make, error, message
):
    make(bases, tmp_path / "start")
    for call in (train, describe):
        with pytest.raises(error, match=message):
            call(recipe(start={"model": str(tmp_path / "start")}), tmp_path / "run", benchmark=benchmark)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


def test_a_model_that_a_later_stage_asks_for_is_looked_for_before_anything_runs(benchmark, pairs, recipe, tmp_path):
    stages = {stage["name"]: stage for stage in every_stage(pairs)}
    projector = {**stages["texts"], "lora": {**LORA, "projector": "visual.murger"}}
    message = "stage 'texts': projector is 'visual.murger', which holds no linear layer; .*: visual, language_model"
    for call in (train, describe):
        with pytest.raises(ValueError, match=message):
            call(recipe(stages=[projector]), tmp_path / "run", benchmark=benchmark)
    judge = {**stages["judge"], "base": str(tmp_path / "none")}
    with pytest.raises(FileNotFoundError, match="none' does not exist; give a checkpoint's folder"):
        train(recipe(stages=[stages["mined"], judge]), tmp_path / "run", benchmark=benchmark)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
