"""Adapters: where they sit, merging, resuming, whole checkpoints."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder, SentenceTransformerTrainer
from transformers import AutoModel, AutoProcessor, TrainerState

from backbones import FAMILIES
from train_on_ranks import WORDS
from umarvel_hf.encoding import load
from umarvel_hf.modeling.modeling_umarvel import UMarvelModel
from umarvel_hf.trainer.adapters import (
    Lora,
    add_lora,
    freeze_temperature,
    last_checkpoint,
    merge_adapter,
)
from umarvel_hf.trainer.arguments import UMarvelTrainingArguments
from umarvel_hf.trainer.losses import InfoNCE, similarity_of
from umarvel_hf.trainer.trainer import UMarvelTrainer

LORA = Lora(r=4, alpha=8)
# Where each family keeps its language model, and a module between that and its eyes.
PLACES = {
    "qwen2_vl": ("vlm.language_model.", "visual.merger"),
    "qwen2_5_vl": ("vlm.language_model.", "visual.merger"),
    "qwen3_vl": ("vlm.language_model.", "visual.deepstack_merger_list"),
    "smolvlm": ("vlm.text_model.", "connector"),
    "llava_onevision": ("vlm.language_model.", "multi_modal_projector"),
    "without_template": ("vlm.language_model.", "multi_modal_projector"),
}


@pytest.fixture(scope="module")
def rows():
    texts = [f"one {word} on a {other}" for word, other in zip(WORDS, WORDS[::-1], strict=True)]
    return Dataset.from_dict({"query": [f"a {word}" for word in WORDS], "positive": texts})


@pytest.fixture(scope="module")
def bf16(checkpoint, tmp_path_factory):
    """The checkpoint as large ones are published: in bfloat16, its temperature in float32."""
    folder = tmp_path_factory.mktemp("bf16") / "model"
    shutil.copytree(checkpoint, folder)
    model = UMarvelModel.from_pretrained(checkpoint)
    model.vlm.to(torch.bfloat16)
    model.save_pretrained(folder)
    return folder


def train(model, rows, out, resume=None, **settings):
    defaults = {
        "per_device_train_batch_size": 4,
        "max_steps": 4,
        "save_strategy": "steps",
        "save_steps": 2,
        "learning_rate": 1e-2,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    arguments = UMarvelTrainingArguments(str(out), **(defaults | settings))
    trainer = UMarvelTrainer(model=model, args=arguments, train_dataset=rows)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.fixture(scope="module")
def run(checkpoint, rows, tmp_path_factory):
    """The checkpoints of a run of four steps that trained an adapter and the temperature, and its model."""
    folder, model = tmp_path_factory.mktemp("run"), load(checkpoint)
    add_lora(model, LORA, train_temperature=True)
    train(model, rows, folder)
    return folder, model


def adapted(model):
    return {name.removesuffix(".lora_A") for name, _ in model[0].model.named_modules() if name.endswith(".lora_A")}


def linears(model, prefix):
    """Names of the linear layers below ``prefix`` of a model without adapters."""
    modules = model[0].model.named_modules()
    return {name for name, one in modules if isinstance(one, torch.nn.Linear) and name.startswith(prefix)}


def trainable(model):
    return {name for name, parameter in model[0].model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_linear_layer_of_the_language_model_is_adapted_and_no_other(checkpoints, family):
    model, plain = load(checkpoints(family)), load(checkpoints(family))
    decoder, projector = PLACES[family]
    add_lora(model, LORA)
    assert adapted(model) == linears(plain, decoder) and len(adapted(model)) == 2 * 7  # layers, and in each
    assert all("lora_" in name for name in trainable(model))  # the temperature is frozen, too
    with_projector = load(checkpoints(family))
    add_lora(with_projector, Lora(r=4, alpha=8, projector=projector), train_temperature=True)
    extra = linears(plain, f"vlm.{projector}.")
    assert extra and adapted(with_projector) == linears(plain, decoder) | extra
    others = {name for name in trainable(with_projector) if "lora_" not in name}
    assert others == {"similarity.modules_to_save.default.log_temperature"}


def test_a_re_ranker_is_adapted_alike_and_merged(bases, tmp_path):
    from umarvel_hf.reranker_checkpoint import new_reranker

    base = new_reranker(bases("qwen2_vl"), tmp_path / "reranker")
    model, plain = CrossEncoder(str(base), device="cpu"), CrossEncoder(str(base), device="cpu")
    add_lora(model, Lora(r=4, alpha=8, projector="visual.merger"))
    assert adapted(model) == linears(plain, "model.language_model.") | linears(plain, "model.visual.merger.")
    stir(model)
    pairs = [("a dog", "one dog"), ("a bench", "one cat")]
    expected = model.predict(pairs)
    assert np.abs(expected - plain.predict(pairs)).max() > 1e-3
    model.save_pretrained(str(tmp_path / "adapter"))
    merged = CrossEncoder(str(merge_adapter(tmp_path / "adapter", tmp_path / "merged")), device="cpu")
    np.testing.assert_allclose(merged.predict(pairs), expected, rtol=0, atol=1e-5)


def stir(model, seed=1):
    """Weights as if trained: an adapter begins as nothing."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1, generator=generator)


@pytest.mark.parametrize("projector", ["visual.mergers", "visual.patch_embed"])
def test_a_projector_without_linear_layers_is_refused_by_name(checkpoint, projector):
    model = load(checkpoint)
    with pytest.raises(ValueError, match=rf"projector is '{projector}'.*modules of the backbone that do are: visual"):
        add_lora(model, Lora(r=4, alpha=8, projector=projector))
    assert not adapted(model)


def test_a_second_adapter_is_refused_and_the_same_seed_begins_alike(checkpoint):
    one, two, other = load(checkpoint), load(checkpoint), load(checkpoint)
    before = torch.random.get_rng_state()
    for model, seed in ((one, 3), (two, 3), (other, 4)):
        add_lora(model, LORA, seed=seed)
    assert torch.equal(torch.random.get_rng_state(), before)
    name = "0.model.vlm.language_model.layers.0.self_attn.q_proj.lora_A.default.weight"
    weights = [dict(model.named_parameters())[name] for model in (one, two, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    with pytest.raises(ValueError, match="has an adapter already; merge it first"):
        add_lora(one, LORA)


def test_a_frozen_temperature_stays_while_everything_else_trains(checkpoint, rows, tmp_path):
    model = load(checkpoint)
    freeze_temperature(model)
    train(model, rows, tmp_path, max_steps=1, save_strategy="no")
    before = dict(load(checkpoint).named_parameters())
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert "0.model.similarity.log_temperature" not in moved and "0.model.vlm.language_model.norm.weight" in moved


def test_an_adapter_is_held_in_single_precision_over_a_model_in_half(bf16):
    model = load(bf16)
    add_lora(model, LORA, train_temperature=True)
    kinds = {(parameter.dtype, parameter.requires_grad) for parameter in model[0].model.vlm.parameters()}
    assert kinds == {(torch.bfloat16, False), (torch.float32, True)}


def test_a_merged_adapter_gives_its_vectors_in_three_libraries(run, checkpoint, pictures, tmp_path):
    folder, model = run
    items = ["a dog", pictures[0], {"image": pictures[1], "text": "a bench"}]
    expected = model.encode(items, prompt="Find it.")
    assert np.abs(expected - load(checkpoint).encode(items, prompt="Find it.")).max() > 1e-2
    merged = merge_adapter(folder / "checkpoint-4", tmp_path / "merged")
    assert {path.name for path in merged.iterdir()} == {path.name for path in Path(checkpoint).iterdir()}
    assert (merged / "README.md").read_text() == (Path(checkpoint) / "README.md").read_text()
    reloaded = load(merged)
    np.testing.assert_allclose(reloaded.encode(items, prompt="Find it."), expected, rtol=0, atol=1e-5)
    assert torch.equal(similarity_of(reloaded).temperature, similarity_of(model).temperature)
    processor = AutoProcessor.from_pretrained(merged)
    chat = [{"role": "user", "content": [{"type": "text", "text": "a dog"}]}]
    batch = processor.apply_chat_template(chat, tokenize=True, return_dict=True, return_tensors="pt")
    with torch.no_grad():
        vector = AutoModel.from_pretrained(merged, trust_remote_code=True)(**batch).pooler_output[0]
    np.testing.assert_allclose(vector, model.encode("a dog"), rtol=0, atol=1e-5)


def test_merging_rounds_once_and_keeps_the_temperature(bf16, tmp_path):
    model = load(bf16)
    add_lora(model, LORA, train_temperature=True)
    stir(model)
    similarity_of(model).log_temperature.data.fill_(-2.7182817)
    model.save_pretrained(str(tmp_path / "adapter"))
    merged = load_file(merge_adapter(tmp_path / "adapter", tmp_path / "merged") / "model.safetensors")
    base, adapter = load_file(bf16 / "model.safetensors"), load_file(tmp_path / "adapter/adapter_model.safetensors")
    changed = 0
    for name, weight in base.items():
        prefix = f"base_model.model.{name.removesuffix('.weight')}.lora_"
        if f"{prefix}A.weight" in adapter:
            product = adapter[f"{prefix}B.weight"] @ adapter[f"{prefix}A.weight"] * (LORA.alpha / LORA.r)
            weight, changed = (weight.float() + product).bfloat16(), changed + 1
        if name != "similarity.log_temperature":
            assert merged[name].dtype == torch.bfloat16 and torch.equal(merged[name], weight), name
    assert changed == 2 * 7 and merged.keys() == base.keys()
    expected = torch.tensor(-2.7182817)
    assert torch.equal(merged["similarity.log_temperature"], expected)
    again = load(tmp_path / "merged")
    assert again.dtype == torch.bfloat16 and torch.equal(similarity_of(again).log_temperature.data, expected)


def test_a_merge_that_is_killed_leaves_nothing_that_looks_finished(run, monkeypatch, tmp_path):
    for owner, step in ((PeftModel, "from_pretrained"), (shutil, "copytree"), (UMarvelModel, "save_pretrained")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, step, killed)
            with pytest.raises(KeyboardInterrupt):
                merge_adapter(run[0] / "checkpoint-4", tmp_path / "merged")
        assert not (tmp_path / "merged").exists()
    (tmp_path / "merged.unfinished/left-over.json").write_text("{}")
    merge_adapter(run[0] / "checkpoint-4", tmp_path / "merged")
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]
    assert not (tmp_path / "merged/left-over.json").exists()
    with pytest.raises(FileExistsError, match="is not an empty folder"):
        merge_adapter(run[0] / "checkpoint-4", tmp_path / "merged")


def killed(*args, **kwargs):
    raise KeyboardInterrupt


@pytest.mark.filterwarnings("ignore:Found missing adapter keys:UserWarning")
def test_half_an_adapter_is_not_merged(run, tmp_path):
    shutil.copytree(run[0] / "checkpoint-4", tmp_path / "half")
    path = tmp_path / "half/adapter_model.safetensors"
    weights = load_file(path)
    missing = next(name for name in sorted(weights) if "lora_B" in name)
    save_file({name: tensor for name, tensor in weights.items() if name != missing}, path)
    with pytest.raises(ValueError, match=rf"1 weights are only in .*'{missing}'"):
        merge_adapter(tmp_path / "half", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("mini_batch_size", [None, 2])
@pytest.mark.parametrize("kind", ["lora over bf16", "all weights"])
def test_a_resumed_training_is_the_unbroken_one_bit_for_bit(checkpoint, bf16, rows, tmp_path, kind, mini_batch_size):
    def begun():
        model = load(checkpoint if kind == "all weights" else bf16)
        if kind != "all weights":
            add_lora(model, LORA, train_temperature=True)  # with dropout
        return model

    unbroken, resumed = begun(), begun()
    settings = {"max_steps": 2, "save_steps": 1, "mini_batch_size": mini_batch_size}
    train(unbroken, rows, tmp_path / "unbroken", **settings)
    shutil.copytree(tmp_path / "unbroken/checkpoint-1", tmp_path / "resumed/checkpoint-1")
    train(resumed, rows, tmp_path / "resumed", resume=last_checkpoint(tmp_path / "resumed"), **settings)
    expected, fresh = dict(unbroken.named_parameters()), dict(begun().named_parameters())
    for name, parameter in resumed.named_parameters():
        assert torch.equal(parameter, expected[name]), name
        if "visual" not in name:  # there is nothing to see
            assert torch.equal(parameter, fresh[name]) != parameter.requires_grad, name


def test_the_host_alone_rounds_the_adapter_that_it_resumes(bf16, rows, tmp_path):
    model, begun, host = load(bf16), load(bf16), load(bf16)
    for one in (model, begun, host):
        add_lora(one, LORA, train_temperature=True)
    stir(model)
    model.save_pretrained(str(tmp_path / "checkpoint-1"))
    arguments = UMarvelTrainingArguments(str(tmp_path), report_to="none", use_cpu=True)
    UMarvelTrainer(model=begun, args=arguments, train_dataset=rows)._load_from_checkpoint(
        str(tmp_path / "checkpoint-1")
    )
    SentenceTransformerTrainer(
        model=host, args=arguments, train_dataset=rows, loss=InfoNCE(host)
    )._load_from_checkpoint(str(tmp_path / "checkpoint-1"))
    name = "0.model.vlm.language_model.layers.0.self_attn.q_proj.lora_B.default.weight"
    expected, ours, theirs = (dict(one.named_parameters())[name] for one in (model, begun, host))
    assert torch.equal(ours, expected)
    assert not torch.equal(theirs, expected) and torch.equal(theirs, expected.bfloat16().float())


def test_resuming_another_adapter_is_refused(run, checkpoint, rows, tmp_path):
    model = load(checkpoint)
    add_lora(model, LORA)  # without the temperature
    with pytest.raises(ValueError, match=r"1 weights are only in .*log_temperature"):
        train(model, rows, tmp_path, resume=str(run[0] / "checkpoint-2"))


# sentence-transformers 6.2 passes it on by a name that transformers 5.23 has deprecated.
@pytest.mark.filterwarnings("ignore:`SentenceTransformer` only defines `gradient_checkpointing_enable`:FutureWarning")
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
@pytest.mark.parametrize("mini_batch_size", [None, 2])
def test_activation_checkpointing_gives_an_adapter_the_same_gradients(checkpoint, rows, mini_batch_size):
    gradients = []
    for checkpointing in (False, True):
        model = load(checkpoint, device="cpu")
        add_lora(model, LORA, train_temperature=True)
        stir(model)
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.train()
        columns = [model.preprocess(rows[:4][name]) for name in ("query", "positive")]
        torch.manual_seed(0)  # of the dropout
        InfoNCE(model, mini_batch_size)(columns).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) == 2 * 14 + 1
    for name, gradient in gradients[0].items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-8, msg=name)


def digests(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("kind", ["lora", "all weights"])
def test_the_state_of_the_trainer_is_written_last(checkpoint, rows, tmp_path, monkeypatch, kind):
    write, before = TrainerState.save_to_json, {}

    def note_and_write(state, path):
        before.update(digests(Path(path).parent))
        write(state, path)

    monkeypatch.setattr(TrainerState, "save_to_json", note_and_write)
    model = load(checkpoint)
    if kind == "lora":
        add_lora(model, LORA)
    train(model, rows, tmp_path, max_steps=1, save_steps=1)
    after = digests(tmp_path / "checkpoint-1")
    assert after.keys() - before.keys() == {"trainer_state.json"} and before.items() <= after.items()
    assert {"optimizer.pt", "scheduler.pt", "rng_state.pth"} < before.keys()


def test_only_a_whole_checkpoint_is_the_last_one(run, tmp_path):
    assert last_checkpoint(tmp_path / "none") is None and last_checkpoint(tmp_path) is None
    shutil.copytree(run[0] / "checkpoint-2", tmp_path / "checkpoint-2")
    (tmp_path / "checkpoint-final").mkdir()
    files = sorted((path for path in (run[0] / "checkpoint-4").rglob("*") if path.is_file()), key=written)
    assert files[-1].name == "trainer_state.json"
    for at, cut in enumerate(files):  # killed at the write of this one
        broken = tmp_path / "checkpoint-10"
        for share in (None, 0.0, 0.5, 0.99):
            shutil.rmtree(broken, ignore_errors=True)
            for path in files[: at + (share is not None)]:
                copy = broken / path.relative_to(run[0] / "checkpoint-4")
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(path.read_bytes() if path != cut else path.read_bytes()[: int(share * sizes(path))])
            assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2"), (cut.name, share)
    shutil.copy(files[-1], broken)
    assert last_checkpoint(tmp_path) == str(broken)  # by number, not by name
    state = (run[0] / "checkpoint-4/rng_state.pth").read_bytes()
    (broken / "rng_state_1.pth").write_bytes(state[: len(state) // 2])  # of another rank, which nobody waits for
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")


def sizes(path):
    return path.stat().st_size


def written(path):
    return path.name == "trainer_state.json", path.stat().st_mtime_ns, path.name


def test_a_model_in_four_bits_is_adapted_trained_resumed_and_merged(checkpoint, rows, tmp_path):
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    def quantised():
        settings = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch.float32,
            llm_int8_skip_modules=["visual"],
        )
        model = load(checkpoint, device="cpu", model_kwargs={"quantization_config": settings})
        add_lora(model, LORA, train_temperature=True)
        return model

    whole, model, resumed = load(checkpoint, device="cpu"), quantised(), quantised()
    layer = model[0].model.vlm.language_model.layers[0].self_attn.q_proj
    assert type(layer.base_layer).__name__ == "Linear4bit" and layer.base_layer.weight.dtype == torch.uint8
    assert adapted(model) == linears(whole, "vlm.language_model.")
    # Gradients are those of the model whose weights are what four bits keep of them.
    from bitsandbytes.functional import dequantize_4bit

    rounded = load(checkpoint, device="cpu")
    for name, module in model[0].model.named_modules():
        if name.endswith(".base_layer"):
            place = rounded[0].model.get_submodule(name.removesuffix(".base_layer"))
            place.weight.data = dequantize_4bit(module.weight.data, module.weight.quant_state)
    add_lora(rounded, LORA, train_temperature=True)
    gradients = []
    for one in (model, rounded):
        stir(one)
        one.train()
        torch.manual_seed(0)  # of the dropout
        InfoNCE(one, 2)([one.preprocess(rows[:4][name]) for name in ("query", "positive")]).backward()
        gradients.append({name: p.grad for name, p in one.named_parameters() if p.requires_grad})
        one.zero_grad()
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[1].items():
        torch.testing.assert_close(gradients[0][name], gradient, rtol=1e-3, atol=1e-5, msg=name)

    settings = {"max_steps": 2, "save_steps": 1, "mini_batch_size": 2}
    model = quantised()
    train(model, rows, tmp_path / "run", **settings)
    shutil.copytree(tmp_path / "run/checkpoint-1", tmp_path / "resumed/checkpoint-1")
    train(resumed, rows, tmp_path / "resumed", resume=last_checkpoint(tmp_path / "resumed"), **settings)
    expected = dict(model.named_parameters())
    for name, parameter in resumed.named_parameters():
        assert torch.equal(parameter, expected[name]), name
    merged = load(merge_adapter(tmp_path / "run/checkpoint-2", tmp_path / "merged"))
    assert merged.dtype == torch.float32  # into the whole weights, not the rounded ones
    assert torch.equal(similarity_of(merged).temperature, similarity_of(model).temperature)
