"""Training journeys: any backbone, adapters, the temperature, resuming."""

import json
import math
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from datasets import Dataset
from datasets import Image as ImageFeature
from peft import LoraConfig, PeftModel
from transformers import AutoModel

from backbones import FAMILIES
from foreign import CHECKOUT
from train_on_ranks import WORDS
from umarvel_hf.encoding import load
from umarvel_hf.modeling.messages_umarvel import ItemError
from umarvel_hf.modeling.modeling_umarvel import UMarvelModel
from umarvel_hf.planning import TokenCounter
from umarvel_hf.trainer.arguments import UMarvelTrainingArguments
from umarvel_hf.trainer.losses import DistillKL, NotFinite, similarity_of
from umarvel_hf.trainer.trainer import UMarvelTrainer, longest_first

INSTRUCTION = "Find an image that matches the given text."
DECODER_LAYERS = r".*layers\.\d+\.(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)"


def close(left, right, atol=1e-5):
    np.testing.assert_allclose(np.asarray(left), np.asarray(right), rtol=0, atol=atol)


@pytest.fixture(scope="module")
def rows(pictures):
    """Sixteen rows: a text, and a picture that belongs to it."""
    columns = {"query": [f"a {word}" for word in WORDS], "positive": [pictures[at % 3] for at in range(len(WORDS))]}
    return Dataset.from_dict(columns).cast_column("positive", ImageFeature())


@pytest.fixture(scope="module")
def items(pictures):
    return ["a dog", pictures[0], {"image": pictures[1], "text": "a bench"}]


def train(model, rows, out, **settings):
    defaults = {
        "per_device_train_batch_size": 4,
        "mini_batch_size": 2,
        "max_steps": 5,
        "learning_rate": 1e-3,
        "temperature_learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    resume, loss = settings.pop("resume_from_checkpoint", None), settings.pop("loss", None)
    arguments = UMarvelTrainingArguments(str(out), **(defaults | settings))
    trainer = UMarvelTrainer(model=model, args=arguments, train_dataset=rows, loss=loss)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.mark.parametrize("family", FAMILIES)
def test_every_backbone_trains_with_gradient_caching_and_is_saved(checkpoints, rows, items, tmp_path, family):
    model = load(checkpoints(family))
    before = model.encode(items)
    trainer = train(model, rows, tmp_path / "run", prompts={"query": INSTRUCTION})
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 5 and all(math.isfinite(loss) for loss in losses) and losses[0] > 0
    after = model.encode(items)
    assert np.abs(after - before).max() > 1e-3
    model.save_pretrained(tmp_path / "trained")
    close(load(tmp_path / "trained").encode(items), after, atol=1e-6)
    untouched = dict(load(checkpoints(family)).named_parameters())
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, untouched[name])}
    for part in ("similarity.log_temperature", "layers.0", "embed_tokens"):
        assert any(part in name for name in moved), part
    assert any("visual" in name or "vision" in name for name in moved)


def test_gradient_caching_by_length_trains_as_the_whole_batch_does(checkpoint, pictures, tmp_path):
    texts = [f"a {'long ' * (at * 5 % 7)}text {at}" for at in range(6)]
    items = [{"image": pictures[at % 3], "text": "red " * (at * 3 % 5)} for at in range(6)]
    labels = [[at, 10 + at % 4, 12] for at in range(6)]  # some rows are right for others
    rows = Dataset.from_list(
        [
            {"query": text, "positive": item, "label": label}
            for text, item, label in zip(texts, items, labels, strict=True)
        ]
    )
    weights = {}
    for mini_batch_size in (None, 2):
        model = load(checkpoint)
        train(
            model, rows, tmp_path / str(mini_batch_size), per_device_train_batch_size=6, max_steps=1, optim="sgd",
            learning_rate=0.1, temperature_learning_rate=0.1, mini_batch_size=mini_batch_size,
            prompts={"query": INSTRUCTION},
        )  # fmt: skip
        weights[mini_batch_size] = dict(model.named_parameters())
    for name, weight in weights[None].items():
        close(weights[2][name].detach(), weight.detach())


def test_a_bad_row_is_named_by_its_place_in_the_batch(embedder):
    with pytest.raises(ItemError, match=r"^Item 1 "):
        longest_first(
            TokenCounter(embedder[0]), embedder.preprocess, ["a", np.zeros((5, 9, 3), np.float32), "a long text"]
        )


def test_training_lowers_the_loss(checkpoint, tmp_path):
    words = ["dog", "bench", "woman", "red", "green", "circle", "square", "house"]
    rows = Dataset.from_dict({"query": [f"a {word}" for word in words], "positive": [f"the {word}" for word in words]})
    trainer = train(load(checkpoint), rows, tmp_path, per_device_train_batch_size=8, mini_batch_size=None, max_steps=25)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert np.mean(losses[-3:]) < 0.5 * losses[0]


def test_the_temperature_moves_at_its_own_rate_is_logged_saved_and_reloaded(checkpoint, rows, tmp_path):
    model = load(checkpoint)
    start = similarity_of(model).temperature.item()
    trainer = train(
        model, rows, tmp_path / "run", learning_rate=0.0, max_steps=1, optim="adamw_torch", weight_decay=0.0
    )
    # Adam's first step is as long as the learning rate, here that of the logarithm; nothing else learns.
    moved = similarity_of(model).log_temperature.item() - math.log(start)
    assert abs(moved) == pytest.approx(0.01, rel=1e-3)
    frozen = dict(load(checkpoint).named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, frozen[name]) != name.endswith("log_temperature"), name
    logged = [entry["temperature"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(logged) == 1 and logged[-1] == pytest.approx(similarity_of(model).temperature.item(), abs=1e-6)
    model.save_pretrained(tmp_path / "trained")
    assert similarity_of(load(tmp_path / "trained")).temperature.item() == similarity_of(model).temperature.item()
    again = UMarvelModel.from_pretrained(tmp_path / "trained", init_temperature=0.5)  # the weights' own is what counts
    assert again.similarity.temperature.item() == similarity_of(model).temperature.item()


def test_a_resumed_run_equals_an_unbroken_one(checkpoint, rows, tmp_path):
    settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "lr_scheduler_type": "linear"}
    unbroken, resumed = load(checkpoint), load(checkpoint)
    train(unbroken, rows, tmp_path / "unbroken", **settings)
    shutil.copytree(tmp_path / "unbroken/checkpoint-3", tmp_path / "resumed/checkpoint-3")
    train(
        resumed, rows, tmp_path / "resumed", resume_from_checkpoint=str(tmp_path / "resumed/checkpoint-3"), **settings
    )
    expected = dict(unbroken.named_parameters())
    for name, parameter in resumed.named_parameters():
        assert torch.equal(parameter, expected[name]), name
    fresh = dict(load(checkpoint).named_parameters())
    assert any(not torch.equal(fresh[name], parameter) for name, parameter in expected.items())


def test_linear_layers_learn_by_muon_at_a_rate_of_their_own_and_a_resumed_run_equals_an_unbroken_one(
    checkpoint, rows, tmp_path
):
    settings = {"muon_learning_rate": 2e-3, "learning_rate": 0.0, "temperature_learning_rate": 0.0, "weight_decay": 0.0}
    settings |= {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "lr_scheduler_type": "linear"}
    unbroken, resumed = load(checkpoint), load(checkpoint)
    train(unbroken, rows, tmp_path / "unbroken", **settings)
    shutil.copytree(tmp_path / "unbroken/checkpoint-2", tmp_path / "resumed/checkpoint-2")
    train(
        resumed, rows, tmp_path / "resumed", resume_from_checkpoint=str(tmp_path / "resumed/checkpoint-2"), **settings
    )
    expected, fresh = dict(unbroken.named_parameters()), dict(load(checkpoint).named_parameters())
    for name, parameter in resumed.named_parameters():
        assert torch.equal(parameter, expected[name]), name
    linear = {f"{name}.weight" for name, module in unbroken.named_modules() if isinstance(module, torch.nn.Linear)}
    assert {name for name, parameter in expected.items() if not torch.equal(parameter, fresh[name])} == linear


def test_muon_beside_another_optimizer_is_refused(checkpoint, rows, tmp_path):
    with pytest.raises(ValueError, match="optim is sgd, but muon_learning_rate trains linear layers by Muon"):
        train(load(checkpoint), rows, tmp_path, muon_learning_rate=1e-3, optim="sgd")


def test_a_checkpoint_of_a_run_loads_by_itself(checkpoint, rows, items, tmp_path):
    model = load(checkpoint)
    train(model, rows, tmp_path, max_steps=2, save_strategy="steps", save_steps=2)
    close(load(tmp_path / "checkpoint-2").encode(items, prompt=INSTRUCTION), model.encode(items, prompt=INSTRUCTION))
    assert AutoModel.from_pretrained(tmp_path / "checkpoint-2", trust_remote_code=True).config.bidirectional


# sentence-transformers 6.2 passes it on by a name that transformers 5.23 has deprecated.
@pytest.mark.filterwarnings("ignore:`SentenceTransformer` only defines `gradient_checkpointing_enable`:FutureWarning")
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
def test_activation_checkpointing_trains_the_same_model(checkpoint, rows, tmp_path):
    plain, checkpointed = load(checkpoint), load(checkpoint)
    train(plain, rows, tmp_path / "plain", max_steps=2, optim="sgd", learning_rate=0.1)
    train(
        checkpointed,
        rows,
        tmp_path / "saving",
        max_steps=2,
        optim="sgd",
        learning_rate=0.1,
        activation_checkpointing=True,
    )
    assert checkpointed[0].model.is_activation_checkpointing and not plain[0].model.is_activation_checkpointing
    expected = dict(plain.named_parameters())
    for name, parameter in checkpointed.named_parameters():
        torch.testing.assert_close(parameter, expected[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.fixture(scope="module")
def labelled():
    return {
        "query": ["a dog", "a bench", "a dog", "red"],
        "positive": ["the dog", "the bench", "one dog", "the red"],
        "negative": ["a cat", "a chair", "a cow", "blue"],
        "label": [[1, 10, 20, 12], [2, 11, 12, -1], [1, 12, 21, 10], [3, 13, -1, -1]],
    }


def test_rows_may_bring_hard_negatives_and_ids(checkpoint, tmp_path, labelled):
    trainer = train(load(checkpoint), Dataset.from_dict(labelled), tmp_path, max_steps=3, logging_steps=2)
    first = trainer.state.log_history[0]
    assert math.isfinite(first["loss"])
    # Rows 0 and 2 are of one query, and the negative of row 1 is right for both: of 4 · 7 negatives four are left out.
    assert first["masked_share"] == pytest.approx(4 / 28, abs=1e-6)


def test_padding_and_speed_are_logged_of_every_batch_once(checkpoint, tmp_path, labelled):
    model, pairs = load(checkpoint), {name: labelled[name] for name in ("query", "positive")}
    masks = [model.preprocess(column)["attention_mask"] for column in pairs.values()]
    tokens, slots = sum(int(mask.sum()) for mask in masks), sum(mask.numel() for mask in masks)
    rows = Dataset.from_dict(pairs)
    for mini_batch_size in (None, 2):
        trainer = train(model, rows, tmp_path, max_steps=2, mini_batch_size=mini_batch_size, logging_steps=2)
        first, *_, last = trainer.state.log_history
        assert first["padding_share"] == pytest.approx(1 - tokens / slots, abs=1e-6) and first["padding_share"] > 0
        assert first["masked_share"] == 0  # no ids, nothing is known
        # The clock of the log runs from the first batch to the log, the host's from before to after that.
        assert first["tokens_per_second"] > 2 * tokens / last["train_runtime"]
        assert not any(name in last for name in ("padding_share", "tokens_per_second", "temperature"))


def test_a_teacher_may_be_distilled_and_has_nothing_masked(checkpoint, tmp_path, labelled):
    scores = {"label": [[[1.2, 0.1], [1.0, 0.0]], [[0.3, 0.9], [1.0, 0.0]]] * 2}
    model = load(checkpoint)
    trainer = train(model, Dataset.from_dict(labelled | scores), tmp_path, loss=DistillKL(model, 3), max_steps=2)
    assert trainer.state.log_history[0]["loss"] > trainer.state.log_history[1]["loss"] > 0
    assert "padding_share" in trainer.state.log_history[0] and "masked_share" not in trainer.state.log_history[0]
    assert similarity_of(model).temperature.item() != similarity_of(load(checkpoint)).temperature.item()


def test_a_loss_that_is_not_a_number_stops_the_training_before_a_weight_moves(checkpoint, tmp_path, labelled):
    scores = {"label": [[[1.2, 0.1], [1.0, 0.0]], [[0.3, math.inf], [1.0, 0.0]]] * 2}
    model = load(checkpoint)
    with pytest.raises(NotFinite) as refused:
        train(model, Dataset.from_dict(labelled | scores), tmp_path, loss=DistillKL(model), max_steps=1)
    assert refused.value.labels.shape == (4, 2, 2)
    untouched = dict(load(checkpoint).named_parameters())
    assert all(torch.equal(parameter, untouched[name]) for name, parameter in model.named_parameters())


@pytest.mark.parametrize("cast", [False, True], ids=["loaded", "cast"])
def test_the_temperature_of_a_bfloat16_model_is_trained_and_saved_in_float32(
    checkpoint, tmp_path, labelled, cast, caplog
):
    model = load(checkpoint).to(torch.bfloat16) if cast else load(checkpoint, model_kwargs={"dtype": torch.bfloat16})
    start = similarity_of(model).log_temperature.item()
    # Adam's steps are as long as the rate; bfloat16 knows no number between -3 and -2.984.
    train(model, Dataset.from_dict(labelled), tmp_path, max_steps=3, temperature_learning_rate=1e-4)
    trained = similarity_of(model).log_temperature
    assert trained.dtype == torch.float32 and 0 < abs(trained.item() - start) < 4e-4
    assert next(model.parameters()).dtype == torch.bfloat16
    assert "Weights of torch.bfloat16 are trained, in which small steps are lost" in caplog.text
    model.save_pretrained(tmp_path / "trained")
    assert similarity_of(load(tmp_path / "trained")).log_temperature.item() == trained.item()


@pytest.mark.parametrize("family", FAMILIES)
def test_pictures_that_are_held_in_half_precision_change_no_weight_of_a_training_in_it(
    checkpoints, rows, tmp_path, family, monkeypatch
):
    trainer = train(load(checkpoints(family)), rows, tmp_path, max_steps=2, bf16=True)
    monkeypatch.setattr("umarvel_hf.trainer.trainer.PRECISIONS", {})
    whole = train(load(checkpoints(family)), rows, tmp_path, max_steps=2, bf16=True)
    held = [one.data_collator([rows[0]])["positive_pixel_values"].dtype for one in (trainer, whole)]
    assert held == [torch.bfloat16, torch.float32]
    known = dict(whole.model.named_parameters())
    assert [name for name, weight in trainer.model.named_parameters() if not torch.equal(weight, known[name])] == []


def adapted(checkpoint, rows, out, **settings):
    model = load(checkpoint)
    model.add_adapter(
        LoraConfig(r=4, target_modules=DECODER_LAYERS, modules_to_save=["similarity"], task_type="FEATURE_EXTRACTION")
    )
    return model, train(model, rows, out, learning_rate=1e-2, **settings)


def reaches_back(model):
    """Whether the last token changes the state of the first."""
    ids = torch.tensor([[5, 6, 7, 8], [5, 6, 7, 9]])
    with torch.no_grad():
        states = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    return (states[0, 0] - states[1, 0]).abs().max() > 1e-4


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl", "smolvlm"])
def test_an_adapter_is_saved_reloaded_and_merged_and_stays_bidirectional(checkpoints, rows, items, tmp_path, family):
    checkpoint = checkpoints(family)
    model, trainer = adapted(checkpoint, rows, tmp_path / "run", max_steps=3)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name or "similarity" in name for name in trained)
    temperature = similarity_of(model).temperature.item()
    assert temperature != pytest.approx(0.05, rel=1e-3)
    assert trainer.state.log_history[-2]["temperature"] == pytest.approx(temperature, abs=1e-6)
    expected = model.encode(items, prompt=INSTRUCTION)
    assert np.abs(expected - load(checkpoint).encode(items, prompt=INSTRUCTION)).max() > 1e-3

    model.save_pretrained(tmp_path / "adapter")
    assert not (tmp_path / "adapter/config.json").exists() and not (tmp_path / "adapter/model.safetensors").exists()
    settings = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(checkpoint)
    reloaded = load(tmp_path / "adapter")
    close(reloaded.encode(items, prompt=INSTRUCTION), expected, atol=1e-6)
    assert similarity_of(reloaded).temperature.item() == pytest.approx(temperature, abs=1e-7)
    assert reaches_back(reloaded[0].model)

    base = UMarvelModel.from_pretrained(checkpoint)
    merged = PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload(safe_merge=True)
    assert isinstance(merged, UMarvelModel) and reaches_back(merged)
    shutil.copytree(checkpoint, tmp_path / "merged")
    merged.save_pretrained(tmp_path / "merged")
    as_a_whole = load(tmp_path / "merged")
    close(as_a_whole.encode(items, prompt=INSTRUCTION), expected)
    assert similarity_of(as_a_whole).temperature.item() == pytest.approx(temperature, abs=1e-7)
    assert reaches_back(as_a_whole[0].model)
    straight = AutoModel.from_pretrained(tmp_path / "adapter", trust_remote_code=True)
    assert reaches_back(straight)


def test_a_frozen_temperature_with_a_rate_of_its_own_is_an_error(checkpoint, rows, tmp_path):
    model = load(checkpoint)
    model.add_adapter(LoraConfig(r=4, target_modules=DECODER_LAYERS))
    with pytest.raises(ValueError, match=r"temperature is frozen.*modules_to_save=\['similarity'\]"):
        train(model, rows, tmp_path)


@pytest.mark.parametrize(
    ("name", "plugin", "said"),
    [
        ("deepspeed", None, r"by DeepSpeed.*ddp\.yaml or fsdp2\.yaml"),
        ("fsdp", {"fsdp_version": 1}, r"fsdp_version 1 and .*; give 2 and FULL_STATE_DICT"),
        ("fsdp", {"fsdp_version": 2, "state_dict_type": "SHARDED_STATE_DICT"}, r"version 2 and .* SHARDED_STATE_DICT;"),
    ],
    ids=["deepspeed", "fsdp1", "in pieces"],
)
def test_ways_to_split_weights_that_are_not_supported_are_refused_before_training(
    checkpoint, rows, tmp_path, monkeypatch, name, plugin, said
):
    build = UMarvelTrainer.create_accelerator_and_postprocess

    def told_to_split(self):
        build(self)
        setattr(self, f"is_{name}_enabled", True)  # what accelerate's configuration says; on CPUs it is not listened to
        if plugin is not None:
            split = FullyShardedDataParallelPlugin(**plugin)
            monkeypatch.setattr(self.accelerator.state, "fsdp_plugin", split, raising=False)

    monkeypatch.setattr(UMarvelTrainer, "create_accelerator_and_postprocess", told_to_split)
    with pytest.raises(ValueError, match=said):
        train(load(checkpoint), rows, tmp_path)


def test_the_arguments_carry_the_rate_of_the_temperature_as_the_host_reads_it(tmp_path):
    arguments = UMarvelTrainingArguments(str(tmp_path), temperature_learning_rate=0.5, report_to="none", use_cpu=True)
    assert arguments.learning_rate_mapping == {r"similarity\..*log_temperature$": 0.5}
    other = {"a": 0.1}
    arguments = UMarvelTrainingArguments(
        str(tmp_path), learning_rate_mapping=other, temperature_learning_rate=0.5, report_to="none", use_cpu=True
    )
    assert arguments.learning_rate_mapping == {"a": 0.1, r"similarity\..*log_temperature$": 0.5} and other == {"a": 0.1}


@pytest.mark.benchmark
def test_with_gradient_caching_the_memory_of_a_step_is_flat_in_the_batch():
    command = [sys.executable, CHECKOUT / "benchmarks/step_memory.py", "--rows", "64", "1024", "--plain"]
    printed = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout
    print(printed)
    ratios = [line.split()[-2:] for line in printed.splitlines() if line.strip().startswith("chunks of 8")]
    assert float(ratios[1][0]) <= 1.25 and float(ratios[1][1]) <= 1.1  # with the pictures themselves, and without
