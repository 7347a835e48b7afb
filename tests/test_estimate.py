"""``umarvel train --dry-run``: what a recipe would do, before it does it."""

import json
import math
import re

import pytest
import yaml

from colours import TINY_RECIPE, TRAINING, write_benchmark, write_training_split
from umarvel_hf.cli import main
from umarvel_hf.data import MBeir
from umarvel_hf.trainer.estimate import describe
from umarvel_hf.trainer.run import train

STAGES = [
    {"name": "first", "kind": "contrastive", "data": [{"mbeir": "all"}],
     "training": {**TRAINING, "num_train_epochs": 2, "max_steps": -1}},
    {"name": "mined", "kind": "mine", "share": 0.5, "depth": 6},
    {"name": "hard", "kind": "hard_negatives", "negatives": {"table": "mined", "union": 2},
     "lora": {"r": 4, "alpha": 8}, "training": {**TRAINING, "max_steps": 5, "gradient_accumulation_steps": 2}},
]  # fmt: skip


@pytest.fixture
def benchmark(tmp_path):
    return MBeir(write_training_split(write_benchmark(tmp_path / "data")))


@pytest.fixture
def recipe(tmp_path):
    """``recipe(key=value)``: the file of these stages with some keys changed."""

    def write(**changed):
        (tmp_path / "plan.yaml").write_text(yaml.safe_dump({**TINY_RECIPE, "stages": STAGES, **changed}))
        return tmp_path / "plan.yaml"

    return write


@pytest.fixture
def pairs(tmp_path):
    (tmp_path / "nli.csv").write_text("sent0,sent1\n" + "a dog,an animal\na cat,an animal\n" * 4)
    return tmp_path / "nli.csv"


def table(told):
    """The lines of the table, by stage: their cells."""
    return {line.split()[0]: re.split(r"\s{2,}", line.strip())[1:] for line in told.splitlines()[3:]}


def test_rows_and_steps_are_those_of_the_recipe(recipe, benchmark, tmp_path):
    rows, batch = 18, TRAINING["per_device_train_batch_size"]
    told = table(describe(recipe(), tmp_path / "run", benchmark=benchmark))
    assert told["first"][:4] == ["Contrastive", f"{rows}", f"{batch}", f"{2 * (rows // batch)}"]
    assert told["mined"][:2] == ["Mine", "9"]
    assert told["hard"][:4] == ["HardNegatives", "9", f"{2 * batch}", "5"]
    few = recipe(stages=[{**STAGES[1], "groups": ["1 task 0"], "share": 1.0}, STAGES[2]])
    told = table(describe(few, tmp_path / "run", benchmark=benchmark))
    assert (told["mined"][1], told["hard"][1]) == ("6", "6")
    assert not (tmp_path / "run").exists()
    two = table(describe(recipe(stages=STAGES[:1]), tmp_path / "run", benchmark=benchmark, ranks=2))
    assert two["first"][2:4] == [f"{2 * batch}", f"{2 * (rows // (2 * batch))}"]  # the rest fills no step


def test_steps_of_an_epoch_are_those_of_the_host(recipe, benchmark, tmp_path):
    def steps(stages, **changed):
        stages = [*stages[:-1], {**stages[-1], **changed}]
        return int(table(describe(recipe(stages=stages), tmp_path / "run", benchmark=benchmark))[stages[-1]["name"]][3])

    training = {**TRAINING, "num_train_epochs": 2, "max_steps": -1, "gradient_accumulation_steps": 2}
    assert steps(STAGES[:1], training=training) == 4  # three batches of six are two steps
    mined = {**STAGES[1], "share": 1.0}
    assert steps([mined, STAGES[2]], training=training) == 4
    assert steps([mined, STAGES[2]], training=training, remine_every_steps=10) == 20


def test_an_adapter_of_the_projector_is_counted(recipe, benchmark, tmp_path):
    def trained(**lora):
        stage = {**STAGES[0], "lora": {"r": 4, "alpha": 8, **lora}}
        told = table(describe(recipe(stages=[stage]), tmp_path / "run", benchmark=benchmark))
        return int(told["first"][4].replace(",", ""))

    added = trained(projector="visual.merger") - trained()
    # Two layers join four patches' features to one and bring that to the decoder's width; all of `visual` has more.
    merged = 4 * TINY_RECIPE["start"]["tiny"]["vision_hidden"]
    assert added == 4 * (merged + merged + merged + TINY_RECIPE["start"]["tiny"]["hidden"])
    assert trained(projector="visual") > trained() + added


def test_what_is_trained_is_what_the_trained_checkpoint_holds(recipe, benchmark, tmp_path):
    path = recipe(stages=[{**STAGES[0], "training": {**TRAINING, "max_steps": 1}}])
    told = describe(path, tmp_path / "run", benchmark=benchmark)
    train(path, tmp_path / "run", benchmark=benchmark)
    index = (tmp_path / "run/model/model.safetensors").read_bytes()
    header = json.loads(index[8 : 8 + int.from_bytes(index[:8], "little")])
    sizes = {name: one["shape"] for name, one in header.items() if name != "__metadata__"}
    weights = sum(math.prod(shape) for shape in sizes.values())
    added = 1 + 3 * sizes["vlm.language_model.embed_tokens.weight"][1]  # a temperature and three tokens
    assert int(table(told)["first"][4].replace(",", "")) == weights - added


def test_a_trial_is_told_as_it_would_run(recipe, benchmark, tmp_path):
    told = table(describe(recipe(), tmp_path / "run", benchmark=benchmark, max_steps=2))
    assert told["first"][1:4] == ["12", "4", "2"]  # four queries of each of three tasks
    assert told["mined"][1] == "12" and told["hard"][2:4] == ["8", "2"]


def test_more_memory_for_more_rows_at_a_time_and_less_for_adapters(recipe, tmp_path):
    benchmark = MBeir(write_training_split(write_benchmark(tmp_path / "more"), repeats=30))

    def memory(**training):
        stage = {**STAGES[0], "training": {**TRAINING, **training}}
        told = describe(recipe(stages=[stage], start={"tiny": {}}), tmp_path / "run", benchmark=benchmark)
        return float(table(told)["first"][5].removesuffix(" GiB"))

    many = memory(per_device_train_batch_size=512)
    assert many > 2 * memory(per_device_train_batch_size=128)
    assert memory(per_device_train_batch_size=512, mini_batch_size=8) < many / 4
    assert memory(per_device_train_batch_size=512, gradient_checkpointing=True) < many / 2


def test_muon_keeps_one_moment_of_the_decoders_matrices(recipe, benchmark, tmp_path):
    wide = {"hidden": 2048, "layers": 16, "heads": 16, "intermediate": 8192}

    def memory(**training):
        stage = {**STAGES[0], "training": {**TRAINING, **training}}
        told = describe(recipe(stages=[stage], start={"tiny": wide}), tmp_path / "run", benchmark=benchmark)
        return float(table(told)["first"][5].removesuffix(" GiB"))

    matrices = 16 * (4 * 2048 * 2048 + 3 * 2048 * 8192)
    assert memory() - memory(muon_learning_rate=1.0e-3) == pytest.approx(4 * matrices / 2**30, abs=0.11)


def test_a_batch_larger_than_the_data_is_refused(recipe, benchmark, tmp_path):
    stage = {**STAGES[0], "training": {**TRAINING, "per_device_train_batch_size": 20}}
    with pytest.raises(ValueError, match=r"stage 'first': 18 rows fill no batch of 20. Lower the batch size."):
        describe(recipe(stages=[stage]), tmp_path / "run", benchmark=benchmark)


def test_a_recipe_whose_data_are_elsewhere_is_told_as_far_as_it_can_be(recipe, tmp_path, capsys, pairs):
    stages = [{"name": "pairs", "kind": "contrastive", "data": [{"nli": str(pairs)}], "training": TRAINING}, *STAGES]
    assert main(["train", str(recipe(stages=stages, benchmark=str(tmp_path / "none"))), "--dry-run"]) == 0
    told = table(capsys.readouterr().out)
    assert told["pairs"][1] == "8"
    assert told["first"][1:4] == ["not here", "6", "not here"] and told["hard"][1:4] == ["not here", "12", "5"]


def test_a_bad_row_is_told_or_left_out_as_the_recipe_says(recipe, benchmark, tmp_path):
    lines = benchmark.train_path.read_text().splitlines()
    benchmark.train_path.write_text("\n".join([lines[0][:30], *lines[1:]]))
    with pytest.raises(ValueError, match=r"train.jsonl:1: not JSON"):
        describe(recipe(), tmp_path / "run", benchmark=MBeir(benchmark.root))
    told = table(describe(recipe(bad_rows="quarantine"), tmp_path / "run", benchmark=MBeir(benchmark.root)))
    assert told["first"][1] == "17"
