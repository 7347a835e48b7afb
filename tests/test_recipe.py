"""Recipes: read strictly, what cannot run is refused by name."""

import copy
from importlib.resources import files

import pytest
import yaml

from colours import TINY_RECIPE, TRAINING
from umarvel_hf.emoji.base import BaseSize
from umarvel_hf.negatives import Filters
from umarvel_hf.trainer import recipe_checks
from umarvel_hf.trainer.adapters import Lora
from umarvel_hf.trainer.recipe import (
    Captions,
    Contrastive,
    Distill,
    HardNegatives,
    Instructions,
    Mine,
    Nli,
    Reranker,
    Score,
)
from umarvel_hf.trainer.recipe_reader import read_recipe

SHIPPED = sorted(
    file.name.removesuffix(".yaml") for file in files("umarvel_hf.recipes").iterdir() if file.name.endswith(".yaml")
)
STAGES = [
    {
        "name": "texts",
        "kind": "contrastive",
        "data": [{"nli": "nli.csv", "negatives": True}],
        "temperature": "fixed",
        "lora": {"r": 4, "alpha": 8},
        "training": TRAINING,
    },
    {
        "name": "all",
        "kind": "contrastive",
        "data": [{"captions": "c.jsonl", "weight": 2}, {"mbeir": ["1 task 0"]}],
        "batches": "per_task",
        "symmetric": True,
        "training": TRAINING,
    },
    {"name": "mined", "kind": "mine", "depth": 20},
    {
        "name": "hard",
        "kind": "hard_negatives",
        "negatives": {
            "table": "mined",
            "union": 5,
            "strategy": "window",
            "window": [2, 12],
            "wrong_modality": 1,
            "filters": {"relative_margin": 0.05},
            "tasks": {"1 task 0": {"strategy": "random"}},
        },
        "remine_every_epochs": 1,
        "training": TRAINING,
    },
    {"name": "judge", "kind": "reranker", "table": "mined", "base": "texts", "training": {"max_steps": 3}},
    {"name": "taught", "kind": "score", "table": "mined", "reranker": "judge", "top": 10, "weight": 0.5},
    {"name": "distilled", "kind": "distill", "table": "taught", "top": 8, "training": TRAINING},
]


@pytest.fixture
def recipe(tmp_path):
    """``recipe(key=value)``: the file of a tiny recipe with some keys changed; None removes a key."""

    def write(**changed):
        content = {key: value for key, value in {**TINY_RECIPE, **changed}.items() if value is not None}
        (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(content))
        return tmp_path / "tiny.yaml"

    return write


@pytest.fixture
def stages(recipe):
    """``stages("hard.negatives.local", 3)``: the file of a recipe of all stages, with one value in it changed."""

    def write(path=None, value=None, **changed):
        content = copy.deepcopy(STAGES)
        if path is not None:
            name, *keys, last = path.split(".")
            place = next(stage for stage in content if stage["name"] == name)
            for key in keys:
                place = place.setdefault(key, {})
            place[last] = value
        return recipe(stages=content, **changed)

    return write


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_recipes_are_complete_and_begin_with_their_command(name):
    assert read_recipe(name).name == name
    lines = files("umarvel_hf.recipes").joinpath(f"{name}.yaml").read_text().splitlines()
    first = next(at for at, line in enumerate(lines) if not line.endswith("\\"))
    command = "".join(line.removeprefix("#").rstrip("\\") for line in lines[: first + 1])
    assert lines[0].startswith("# ") and f" train {name}" in command


def test_a_recipe_says_what_its_file_says(stages):
    plan = read_recipe(stages(seed=11, max_pixels=784))
    assert (plan.name, plan.seed, plan.max_pixels, plan.bad_rows) == ("tiny", 11, 784, "stop")
    assert isinstance(plan.start.tiny, BaseSize) and plan.start.tiny.hidden == 32
    kinds = [type(stage) for stage in plan.stages]
    assert kinds == [Contrastive, Contrastive, Mine, HardNegatives, Reranker, Score, Distill]
    texts, everything, mined, hard = plan.stages[:4]
    assert texts.lora == Lora(r=4, alpha=8) and texts.data == [Nli("nli.csv", negatives=True)]
    assert everything.data == [Captions("c.jsonl", weight=2.0), Instructions(["1 task 0"])]
    assert (mined.pools, mined.depth, mined.share) == (["local", "union"], 20, 1.0)
    assert hard.negatives.filters == Filters(relative_margin=0.05) and hard.negatives.window == (2, 12)
    assert plan.stages[0].training == TRAINING and plan.needs_benchmark


def test_a_recipe_of_ones_own_pairs_needs_no_benchmark(recipe):
    pairs = {"name": "texts", "kind": "contrastive", "data": [{"nli": "nli.csv"}], "training": TRAINING}
    assert not read_recipe(recipe(stages=[pairs], start={"model": "some/model"})).needs_benchmark


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"colour": 1}, r"tiny.yaml: unknown keys \['colour'\], missing keys \[\]; known are \['bad_rows'"),
        ({"seed": None}, r"tiny.yaml: unknown keys \[\], missing keys \['seed'\]"),
        ({"seed": "seven"}, "tiny.yaml: seed is 'seven'; it must be int"),
        ({"bad_rows": "skip"}, "tiny.yaml: bad_rows is 'skip'; it must be .*stop.*quarantine"),
        ({"start": {"tiny": {"hiden": 3}}}, r"tiny.yaml: start: tiny: unknown keys \['hiden'\]"),
        ({"start": {}}, r"start: give exactly one of tiny, smollm2 and model; found \[\]"),
        ({"start": {"model": "a", "smollm2": {}}}, r"exactly one .*; found \['smollm2', 'model'\]"),
        ({"stages": []}, r"stages is \[\]; it must be a list of at least one"),
        ({"stages": [{"kind": "train"}]}, r"stages\[0\]: kind is 'train'; it must be one of contrastive, mine"),
        (
            {"stages": [{"name": "one", "kind": ["contrastive"]}]},
            r"stages\[0\] \(one\): kind is \['contrastive'\]; it must be one of contrastive, mine",
        ),
        ({"stages": "long"}, "stages is 'long'; it must be a list"),
        ({"seed": -1}, r"tiny.yaml: seed is -1; give a whole number from 0"),
        ({"evaluation": {"queries_per_task": 0}}, "evaluation: queries_per_task is 0, .*; give at least 1"),
    ],
)
def test_a_key_that_no_one_reads_is_refused(recipe, changed, message):
    with pytest.raises(ValueError, match=message):
        read_recipe(recipe(**changed))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("texts.training.max_step", 3, r"stage 'texts': training: unknown keys \['max_step'\]"),
        ("texts.training.learning_rate", "2e-3", "learning_rate is the text '2e-3', no number; write a point: 2.0e-3"),
        ("texts.training.output_dir", "x", r"training: \['output_dir'\] are the run's own to set"),
        ("texts.training.dataloader_persistent_workers", True, "dataloader_persistent_workers is True; such workers"),
        ("all.training.temperature_learning_rate", -0.1, "temperature_learning_rate is -0.1; it must be a number from"),
        ("texts.training.temperature_learning_rate", 0.1, "temperature is fixed, but training gives it a"),
        ("texts.training", {"muon_learning_rate": 1e-3, "optim": "sgd"}, "optim is 'sgd', but muon_learning_rate"),
        ("texts.lora", {"r": "four", "alpha": 8}, "lora: r is 'four'; it must be int"),
        ("texts.data", [{"nli": "a", "captions": "b"}], r"a data set is named by exactly one of nli, captions, mbeir"),
        ("texts.batches", 4, "blocks of 4 rows do not fill a batch of 6; choose a divisor"),
        ("texts.batches", "some", "batches is 'some'; it must be "),
        ("texts.name", "a/b", "stage 'a/b': names are letters, digits"),
        ("all.name", "texts", "stage 'texts': names are letters, digits, dots and hyphens, not start, and each stands"),
        ("all.name", "start", "stage 'start': names are .* not start"),
        ("mined.share", 0.0, "share 0.0"),
        ("mined.pools", ["global"], "pools is .*; it must be"),
        ("mined.pools", ["local"], r"it needs union lists, but stage 'mined' mines \['local'\]"),
        ("mined.depth", 8, "negatives reach down to rank 12, but stage 'mined' mines 8"),
        (
            "hard.negatives.table",
            "all",
            "tiny.yaml: stage 'hard': table 'all' is no earlier stage of kind mine or score",
        ),
        ("hard.negatives.union", 0, "negatives are 0 local and 0 union; give at least one"),
        ("hard.negatives.wrong_modality", 6, "wrong_modality is 6, but only 5 come from the union pool"),
        ("hard.negatives.strategy", "top", "strategy is 'top', window .*; a window belongs to"),
        ("hard.negatives", {"table": "mined", "local": 2, "strategy": "random"}, "random draws from the whole"),
        (
            "hard.negatives.tasks",
            {"1 task 0": {"strat": "top"}},
            "negatives.tasks: '1 task 0': .*strat.*; write DATA SET",
        ),
        ("hard.negatives.tasks", {"dogs": {"strategy": "top"}}, "negatives.tasks: 'dogs': .*; write DATA SET task NUM"),
        ("hard.negatives.tasks", {"1 task 0": {"strategy": "worst"}}, "'1 task 0': strategy is 'worst'; choose top"),
        ("texts.training.report_to", "wandbb", "report_to is 'wandbb'; here are none, all"),
        ("texts.training.optim", "foo", "training: optim is 'foo'; it must be one of .*adamw_torch"),
        ("texts.training.lr_scheduler_type", "foo", "lr_scheduler_type is 'foo'; it must be one of linear, cosine"),
        ("texts.training.save_strategy", "foo", "save_strategy is 'foo'; it must be one of no, steps, epoch"),
        ("texts.training.learning_rate", float("nan"), "learning_rate is nan; it must be a number from 0"),
        ("texts.training.learning_rate", "fast", "learning_rate is 'fast'; it must be a number from 0"),
        ("texts.training.muon_learning_rate", -0.1, "muon_learning_rate is -0.1; it must be a number from 0, or left"),
        ("texts.training.per_device_train_batch_size", 0, "per_device_train_batch_size is 0; it must be a whole num"),
        ("texts.training.per_device_train_batch_size", "6", "per_device_train_batch_size is '6'; it must be a whole"),
        ("texts.training.gradient_accumulation_steps", 0, "gradient_accumulation_steps is 0; it must be a whole num"),
        ("texts.training.num_train_epochs", 0, "num_train_epochs is 0; it must be a number above 0"),
        ("texts.training.max_steps", 2.5, "max_steps is 2.5; it must be a whole number from 1"),
        ("texts.training.max_text_tokens", 0, "max_text_tokens is 0; it must be a whole number from 1"),
        ("texts.lora", {"r": 0, "alpha": 8}, "lora: r is 0, dropout 0.05; give at least 1"),
        ("texts.augmentation", {"shft": 1.0}, "augmentation: .*shft"),
        ("texts.data", [{"nli": "a"}, {"nli": "b"}], r"data: several data sets are called \['nli'\]; join or rename"),
        ("texts.data", [{"captions": "x/c.csv"}, {"captions": "y/c.csv"}], r"several data sets are called \['c'\]"),
        ("texts.data", [{"mbeir": "all"}, {"mbeir": ["1 task 0"]}], "mbeir is given as 'all' and by groups"),
        ("texts.data", [{"nli": "a", "weight": 0.0}], "data: weight is 0.0; give a number above 0"),
        ("hard.remine_every_epochs", 0, "remine_every_epochs is 0; give at least 1"),
        ("texts.attn_implementation", "sdp", "stage 'texts': attn_implementation is 'sdp'; here are eager, sdpa"),
        ("texts.attn_implementation", "flex_attention", "is 'flex_attention'; here are eager, sdpa"),
        ("judge.base", "mined", "stage 'judge': base 'mined' leaves no model before; name an earlier stage"),
        ("judge.base", "judge", "stage 'judge': base 'judge' leaves no model before; name an earlier stage that"),
        ("judge.base", "distilled", "stage 'judge': base 'distilled' leaves no model before"),
        ("mined.batch_tokens", 0, "stage 'mined': batch_tokens is 0; give at least 1"),
        ("taught.weight", -1.0, "weight is -1.0; give a number from 0, or leave it out to have it fitted"),
        ("taught.weight", float("nan"), "weight is nan; give a number from 0"),
        ("judge.max_text_tokens", 0, "max_text_tokens is 0; give at least 1"),
        ("distilled.infonce_weight", -1.0, "infonce_weight is -1.0; give a number from 0"),
        ("hard.negatives.filters", {"veto": 0.5}, "filters.veto asks a re-ranker's answers, which stage 'mined' has"),
        ("hard.remine_every_steps", 3, "remine_every_epochs and remine_every_steps are both given"),
        ("judge.table", "taught", "table 'taught' is no earlier stage of kind mine; earlier are"),
        ("judge.training.mini_batch_size", 3, r"stage 'judge': training: unknown keys \['mini_batch_size'\]"),
        ("taught.reranker", "hard", "reranker 'hard' is no earlier stage of kind reranker"),
        ("taught.top", 30, "top is 30, but stage 'mined' keeps 20 candidates"),
        ("taught.fit_top", 60, "fit_top is 60; give more than the tasks' metrics count, and at most 50"),
        ("taught.weight", None, "weight is to be fitted on the validation split, but evaluation is left out"),
        ("distilled.table", "mined", "table 'mined' is no earlier stage of kind score"),
        ("distilled.top", 11, "top is 11, but stage 'taught' scores 10 candidates"),
    ],
)
def test_stages_that_do_not_fit_together_are_refused_by_name(stages, path, value, message):
    with pytest.raises(ValueError, match=message):
        read_recipe(stages(path, value))


def test_an_attention_kernel_is_refused_where_its_package_is_not_here(stages, monkeypatch):
    monkeypatch.setattr(recipe_checks, "is_kernels_available", lambda: False)
    for name in ("flash_attention_2", "kernels-community/flash-attn2"):
        with pytest.raises(ValueError, match=f"'judge': attn_implementation is '{name}'; here are .*flex.* install"):
            read_recipe(stages("judge.attn_implementation", name))
    monkeypatch.setitem(recipe_checks.FLASH_ATTENTION, "flash_attention_2", lambda: True)
    assert read_recipe(stages("judge.attn_implementation", "flash_attention_2"))


def test_a_key_that_stands_twice_is_refused_and_one_that_overrides_a_merged_one_is_not(recipe):
    path = recipe()
    path.write_text(path.read_text() + "seed: 99\n")
    with pytest.raises(ValueError, match=r"tiny.yaml is not YAML \(\['seed'\] stand twice in one mapping.* line \d+"):
        read_recipe(path)
    assert read_recipe("emoji-full").stage("hard").training["per_device_train_batch_size"] == 32


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
