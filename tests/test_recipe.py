"""Recipes: read strictly, followed to the same weights however often the run was killed."""

import json
from importlib.resources import files

import pytest
import torch
import yaml
from safetensors.torch import load_file

from colours import TINY_RECIPE, write_benchmark, write_training_split
from umarvel_hf.data import MBeir
from umarvel_hf.emoji.base import BaseSize
from umarvel_hf.encoding import encode, load
from umarvel_hf.trainer.recipe import read_recipe, train
from umarvel_hf.trainer.trainer import UMarvelTrainer


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    return MBeir(write_training_split(write_benchmark(tmp_path_factory.mktemp("data")), repeats=2))


@pytest.fixture
def recipe(tmp_path):
    """``recipe(key=value)``: the file of a tiny recipe with some keys changed; None removes a key."""

    def write(**changed):
        content = {key: value for key, value in {**TINY_RECIPE, **changed}.items() if value is not None}
        (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(content))
        return tmp_path / "tiny.yaml"

    return write


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


def losses(out, step):
    state = json.loads((out / f"checkpoints/checkpoint-{step}/trainer_state.json").read_text())
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]


def test_a_run_killed_twice_ends_with_the_weights_of_an_unbroken_one(benchmark, recipe, tmp_path, kill_at):
    path, unbroken, broken = recipe(), tmp_path / "unbroken", tmp_path / "broken"
    assert train(path, unbroken, benchmark=benchmark) == unbroken / "model"
    for step in (6, 13):  # the first in the middle of an epoch's steps and of those between two checkpoints
        kill_at(step)
        with pytest.raises(KeyboardInterrupt):
            train(path, broken, benchmark=benchmark)
        assert not (broken / "model").exists()
    # A checkpoint and a model that were being written when the run was killed.
    (broken / "checkpoints/checkpoint-13").mkdir()
    (broken / "checkpoints/checkpoint-13/config.json").write_text("{")
    (broken / "model.unfinished").mkdir()
    (broken / "model.unfinished/sentence_bert_config.json").write_text("{")
    kill_at(None)
    train(path, broken, benchmark=benchmark)
    assert losses(unbroken, 14) == losses(broken, 14) and len(losses(unbroken, 14)) == 14
    assert_same(weights(unbroken / "model"), weights(broken / "model"))
    assert not (broken / "model.unfinished").exists()
    vectors = encode(load(str(broken / "model"), device="cpu"), ["red.", next(iter(benchmark.root.rglob("*.png")))])
    assert vectors.shape == (2, 32)


def test_a_run_killed_while_it_wrote_its_start_begins_again(benchmark, recipe, tmp_path):
    path = recipe()
    train(path, tmp_path / "whole", benchmark=benchmark, max_steps=1)
    (tmp_path / "cut/start").mkdir(parents=True)
    (tmp_path / "cut/start/config.json").write_text("{")
    train(path, tmp_path / "cut", benchmark=benchmark, max_steps=1)
    assert_same(weights(tmp_path / "cut/model"), weights(tmp_path / "whole/model"))


def test_a_finished_run_is_not_trained_again(benchmark, recipe, tmp_path, kill_at, caplog):
    model = train(recipe(), tmp_path / "run", benchmark=benchmark, max_steps=1)
    kill_at(0)
    with caplog.at_level("INFO", logger="umarvel_hf"):
        assert train(recipe(), tmp_path / "run", benchmark=benchmark) == model
    assert "is finished; remove it to train again" in caplog.text


def test_training_starts_from_the_seeds_weights_and_moves_them_and_the_temperature(benchmark, recipe, tmp_path):
    for out, seed in (("one", 3), ("other", 4)):
        train(recipe(seed=seed), tmp_path / out, benchmark=benchmark, max_steps=2)
    start, trained, other = (weights(tmp_path / name) for name in ("one/start", "one/model", "other/start"))
    moved = [name for name in start if not torch.equal(start[name], trained[name])]
    assert "similarity.log_temperature" in moved and len(moved) > len(start) / 2
    assert any(not torch.equal(start[name], other[name]) for name in start)


def test_the_shipped_recipe_is_complete_and_its_first_line_is_its_command():
    recipe = read_recipe("emoji")
    assert recipe.name == "emoji" and isinstance(recipe.base, BaseSize)
    text = files("umarvel_hf.recipes").joinpath("emoji.yaml").read_text()
    assert text.startswith("# umarvel train emoji\n")
    assert recipe.training["per_device_train_batch_size"] % recipe.block_size == 0


def test_a_recipe_says_what_its_file_says(recipe):
    plan = read_recipe(recipe(seed=11))
    assert (plan.name, plan.seed, plan.base.hidden) == ("tiny", 11, 32)
    assert plan.training == TINY_RECIPE["training"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"colour": 1}, r"tiny.yaml: unknown keys \['colour'\], missing keys \[\]; known are \['attn_"),
        ({"seed": None}, r"tiny.yaml: unknown keys \[\], missing keys \['seed'\]"),
        ({"training": {"max_step": 3}}, r"tiny.yaml: training: unknown keys \['max_step'\]"),
        ({"base": {"hiden": 3}}, r"tiny.yaml: base: unknown keys \['hiden'\]"),
        ({"augmentation": {"shift": 0.1}}, r"augmentation: unknown keys \[\], missing keys \['colour', 'greys"),
        ({"training": {"learning_rate": "2e-3"}}, "learning_rate is the text '2e-3', no number; write a point: 2.0e-3"),
        ({"training": "long"}, "tiny.yaml: training: found 'long'; write keys and values"),
    ],
)
def test_a_key_that_no_one_reads_is_refused(recipe, changed, message):
    with pytest.raises(ValueError, match=message):
        read_recipe(recipe(**changed))


def test_a_file_that_is_no_recipe_is_refused(tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text("name: [tiny\nseed: 3")
    with pytest.raises(ValueError, match=r"broken.yaml is not YAML \(.*line 2"):
        read_recipe(path)
    path.write_text("")
    with pytest.raises(ValueError, match=r"broken.yaml: found None; write keys"):
        read_recipe(path)
    with pytest.raises(FileNotFoundError, match="emojis is neither a file nor a shipped recipe; shipped are: emoji"):
        read_recipe("emojis")
