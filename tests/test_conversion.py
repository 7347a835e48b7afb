"""Checkpoints of the reference implementation and of other families, turned into ours."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from torch.testing import assert_close
from transformers import AutoModel

from edits import config_of, edited, embedding_rows, weights_of
from umarvel_hf.conversion import convert
from umarvel_hf.encoding import load
from umarvel_hf.modeling.modeling_umarvel import UMarvelModel

GOLDEN = Path(__file__).parent / "golden"
TOKENS = ("<emb>", "<instruction_start>", "<instruction_end>")
INSTRUCTION = "Find an image that matches the given text."


def vectors(folder, name="qwen2_vl", **kwargs):
    """Vectors of two items of a golden set, under an instruction."""
    image = GOLDEN / name / "images/0.png"
    return load(folder, **kwargs).encode([{"image": image, "text": "a dog"}, "a bench"], prompt=INSTRUCTION)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """``reference(name)``: a golden checkpoint, converted."""
    root = tmp_path_factory.mktemp("reference")

    def folder(name):
        if not (root / name).exists():
            convert(GOLDEN / name / "checkpoint", root / name)
        return root / name

    return folder


# Merged reference checkpoints


def test_a_conversion_reports_what_it_found_and_dropped(tmp_path):
    report = convert(GOLDEN / "qwen3_vl/checkpoint", tmp_path / "out", generation_prompt=False)
    assert report.model_type == "qwen3_vl" and report.architecture == "Qwen3VLRetFinetuneForConditionalGeneration"
    assert report.instruction_rows == "stored" and report.dtype == "float32" and not report.generation_prompt
    assert report.token_ids == {"<emb>": 429, "<instruction_start>": 430, "<instruction_end>": 431}
    stored = weights_of(GOLDEN / "qwen3_vl/checkpoint")
    gone = {name for name in stored if "deepstack" in name} | {"lm_head.weight", "sim.temp"}
    assert {name.removeprefix("model.") for name in report.dropped} == {name.removeprefix("model.") for name in gone}
    assert report.temperature == pytest.approx(stored["sim.temp"].item())
    assert report.temperature_from == "sim.temp in model.safetensors"
    said = str(report)
    assert "lm_head.weight" in said and "instruction rows: stored" in said and "deepstack_merger_list.0" in said


def test_a_conversion_is_sequential_and_without_deepstack(reference):
    config = config_of(reference("qwen3_vl"))
    assert config["positions"] == "sequential" and config["bidirectional"] is True and config["pooling"] == "mean"
    assert config["vlm_config"]["vision_config"]["deepstack_visual_indexes"] == []
    kept = weights_of(reference("qwen3_vl"))
    assert not any("lm_head" in name or "deepstack" in name or "sim.temp" in name for name in kept)


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_vl"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_kept(reference, tmp_path, name, dtype):
    def to(half):
        return lambda tensors: {key: half(tensor) for key, tensor in tensors.items()}

    def declare(config):
        config.pop("torch_dtype", None)
        config["dtype"] = str(dtype).removeprefix("torch.")

    source = GOLDEN / name / "checkpoint"
    half = edited(source, tmp_path / "half", to(lambda tensor: tensor.to(dtype)), declare)
    rounded = edited(source, tmp_path / "rounded", to(lambda tensor: tensor.to(dtype).float()))
    report = convert(half, tmp_path / "from_half")
    convert(rounded, tmp_path / "from_rounded")
    assert report.dtype == str(dtype).removeprefix("torch.")
    stored = weights_of(tmp_path / "from_half")
    assert {tensor.dtype for key, tensor in stored.items() if "temperature" not in key} == {dtype}
    assert stored["similarity.log_temperature"].dtype == torch.float32
    in_full = vectors(tmp_path / "from_half", name, model_kwargs={"dtype": torch.float32})
    np.testing.assert_allclose(in_full, vectors(tmp_path / "from_rounded", name), rtol=0, atol=1e-5)
    assert ((vectors(tmp_path / "from_half", name) * in_full).sum(axis=1) > 0.99).all()


def test_shards_are_read_together(reference, tmp_path):
    def shards(folder):
        tensors = weights_of(folder)
        (folder / "model.safetensors").unlink()
        names = sorted(tensors)
        parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
        for file, part in parts.items():
            save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        index = {"metadata": {}, "weight_map": {name: file for file, part in parts.items() for name in part}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    source = edited(GOLDEN / "qwen2_vl/checkpoint", tmp_path / "sharded", files=shards)
    report = convert(source, tmp_path / "out")
    assert "model-0000" in report.temperature_from
    np.testing.assert_allclose(vectors(tmp_path / "out"), vectors(reference("qwen2_vl")), rtol=0, atol=1e-6)


def test_a_checkpoint_without_head_and_temperature_starts_at_the_references_temperature(reference, tmp_path):
    def bare(tensors):
        return {name: tensor for name, tensor in tensors.items() if name not in ("lm_head.weight", "sim.temp")}

    source = edited(GOLDEN / "qwen2_vl/checkpoint", tmp_path / "bare", bare)
    report = convert(source, tmp_path / "out")
    assert report.dropped == [] and "dropped: nothing" in str(report)
    assert report.temperature == 0.05 and "none is stored" in report.temperature_from
    assert UMarvelModel.from_pretrained(tmp_path / "out").similarity.temperature.item() == pytest.approx(0.05)
    np.testing.assert_allclose(vectors(tmp_path / "out"), vectors(reference("qwen2_vl")), rtol=0, atol=1e-6)


def test_a_stored_temperature_must_be_above_zero(tmp_path):
    def zero(tensors):
        tensors["sim.temp"] = torch.tensor(0.0)

    source = edited(GOLDEN / "qwen2_vl/checkpoint", tmp_path / "zero", zero)
    with pytest.raises(ValueError, match=r"the stored temperature sim\.temp is 0\.0; it must be above 0"):
        convert(source, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "rows", "expected"),
    [
        ("qwen2_vl", None, "stored"),
        ("qwen2_vl", "mean", "mean"),
        ("qwen2_vl", "stored", "stored"),
        ("qwen2_vl_published", None, "mean"),
        ("qwen3_vl_published", "stored", "stored"),
    ],
)
def test_instruction_rows_are_stored_or_the_mean_of_those_before(tmp_path, name, rows, expected):
    source = GOLDEN / name / "checkpoint"
    report = convert(source, tmp_path / "out", instruction_rows=rows)
    assert report.instruction_rows == expected
    before, after = embedding_rows(source), embedding_rows(tmp_path / "out")
    emb, *instruction = report.token_ids.values()
    assert torch.equal(after[emb], before[emb])
    for row in instruction:
        if expected == "stored":
            assert torch.equal(after[row], before[row])
        else:
            assert_close(after[row], after[:row].mean(dim=0), rtol=0, atol=1e-6)
            assert (after[row] - before[row]).abs().max() > 1e-3


def test_rows_that_are_not_stored_cannot_be_taken(tmp_path):
    def without_spare_rows(tensors):
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            tensors[name] = tensors[name][:429].clone()

    def smaller(config):
        config["vocab_size"] = 429

    source = edited(GOLDEN / "qwen2_vl_published/checkpoint", tmp_path / "full", without_spare_rows, smaller)
    with pytest.raises(ValueError, match="its embedding has 429 rows and its tokens would need 432"):
        convert(source, tmp_path / "out", instruction_rows="stored")
    report = convert(source, tmp_path / "out")
    assert report.instruction_rows == "mean" and len(embedding_rows(tmp_path / "out")) == 432


def test_weights_that_do_not_belong_are_all_listed(tmp_path):
    def strange(tensors):
        tensors["latent_attention.weight"] = torch.zeros(2)
        tensors["model.layers.0.self_attn.r_proj.weight"] = torch.zeros(2)

    source = edited(GOLDEN / "qwen2_vl/checkpoint", tmp_path / "strange", strange)
    with pytest.raises(ValueError, match=r"unknown weights: .*latent_attention\.weight.*r_proj\.weight"):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_that_are_missing_are_all_listed(tmp_path):
    def gaps(tensors):
        del tensors["model.layers.1.mlp.up_proj.weight"], tensors["visual.blocks.0.attn.qkv.bias"]

    source = edited(GOLDEN / "qwen2_vl/checkpoint", tmp_path / "gaps", gaps)
    with pytest.raises(
        ValueError, match=r"missing weights: .*layers\.1\.mlp\.up_proj\.weight.*blocks\.0\.attn\.qkv\.bias"
    ):
        convert(source, tmp_path / "out")


def test_the_processor_may_come_from_the_base(reference, tmp_path):
    def weights_only(folder):
        for path in folder.iterdir():
            if path.name not in ("config.json", "model.safetensors"):
                path.unlink()

    source = edited(GOLDEN / "qwen2_vl/checkpoint", tmp_path / "weights", files=weights_only)
    convert(source, tmp_path / "out", base=GOLDEN / "qwen2_vl/checkpoint")
    np.testing.assert_allclose(vectors(tmp_path / "out"), vectors(reference("qwen2_vl")), rtol=0, atol=1e-6)


def test_a_qwen2_5_vl_checkpoint_is_read_as_the_reference_wrote_it(bases, tmp_path, pictures):
    base = AutoModel.from_pretrained(bases("qwen2_5_vl"))
    rows = base.get_input_embeddings().num_embeddings

    def reference_layout(_):
        tensors = {f"model.{name}": tensor.clone() for name, tensor in base.state_dict().items()}
        return tensors | {"lm_head.weight": torch.zeros(rows, 32), "sim.temp": torch.tensor(0.03)}

    def reference_class(config):
        config["architectures"] = ["Qwen2_5_VLRetFinetuneForConditionalGeneration"]

    source = edited(bases("qwen2_5_vl"), tmp_path / "source", reference_layout, reference_class)
    report = convert(source, tmp_path / "out")
    assert report.temperature == pytest.approx(0.03) and report.instruction_rows == "mean"
    # By hand: the stock backbone, read in both directions, with positions that count tokens.
    embedder = load(tmp_path / "out")
    features = embedder.preprocess([{"image": pictures[0], "text": "a dog"}], prompt=INSTRUCTION)
    ids = features["input_ids"]
    base.config.get_text_config().is_causal = False
    with torch.no_grad():
        weight = base.get_input_embeddings().weight
        for row in list(report.token_ids.values())[1:]:
            weight[row] = weight[:row].mean(dim=0)
        states = base(
            input_ids=ids,
            position_ids=torch.arange(ids.shape[1]).expand(3, 1, -1),
            pixel_values=features["pixel_values"],
            image_grid_thw=features["image_grid_thw"],
            mm_token_type_ids=features["mm_token_type_ids"],
        ).last_hidden_state[0]
    start, end = (ids[0].tolist().index(report.token_ids[token]) for token in TOKENS[1:])
    mean = torch.cat([states[:start], states[end + 1 :]]).mean(dim=0)
    expected = (mean / mean.norm()).numpy()
    vector = embedder.encode([{"image": pictures[0], "text": "a dog"}], prompt=INSTRUCTION)[0]
    np.testing.assert_allclose(vector, expected, rtol=0, atol=1e-5)


# Adapters

TARGETS = {
    "qwen2_vl": [
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
        "qkv",
        "attn.proj",
        "fc1",
    ],
    "qwen3_vl": ["q_proj", "v_proj", "down_proj", "qkv", "attn.proj", "linear_fc1", "linear_fc2"],
}


class Sim(nn.Module):
    def __init__(self):
        super().__init__()
        self.temp = nn.Parameter(torch.tensor(0.041))


def reference_modules(tensors):
    """Modules named as those of the reference's classes; only what LoRA touches is there."""
    root = nn.Module()
    for name, tensor in tensors.items():
        if not name.endswith(".weight") or tensor.ndim != 2 or "embed" in name or "lm_head" in name:
            continue
        *path, leaf = name.removesuffix(".weight").split(".")
        parent = root
        for part in path:
            if not hasattr(parent, part):
                parent.add_module(part, nn.Module())
            parent = getattr(parent, part)
        linear = nn.Linear(tensor.shape[1], tensor.shape[0], bias=False)
        linear.weight.data = tensor.float()
        parent.add_module(leaf, linear)
    root.sim = Sim()
    return root


def train_adapter(base, out, targets, **settings):
    """An adapter as peft saves it in the reference's training, its weights drawn at random.

    Returns:
        The base's weights with the adapter merged by hand.
    """
    tensors = weights_of(base)
    adapter = LoraConfig(r=3, lora_alpha=12, target_modules=targets, modules_to_save=["sim"], **settings)
    model = get_peft_model(reference_modules(tensors), adapter)
    generator = torch.Generator().manual_seed(0)
    merged = {name: tensor.float() for name, tensor in tensors.items()}
    for name, module in model.base_model.model.named_modules():
        if hasattr(module, "lora_A"):
            down, up = module.lora_A["default"].weight, module.lora_B["default"].weight
            up.data = torch.randn(up.shape, generator=generator) * 0.3
            merged[f"{name}.weight"] = merged[f"{name}.weight"] + 12 / 3 * up.data @ down.data
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(out)
    assert (out / "adapter_model.safetensors").is_file() and not (out / "config.json").exists()
    changed = sum((merged[name] != tensors[name].float()).any().item() for name in merged)
    assert changed == len(model.targeted_module_names) > 10
    return merged | {"sim.temp": torch.tensor(0.041)}


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_an_adapter_is_merged_as_by_hand(tmp_path, name, dtype):
    def to_dtype(tensors):
        return {key: tensor.to(dtype) for key, tensor in tensors.items()}

    def declare(config):
        config.pop("torch_dtype", None)
        config["dtype"] = str(dtype).removeprefix("torch.")

    base = edited(GOLDEN / name / "checkpoint", tmp_path / "base", to_dtype, declare)
    merged = train_adapter(base, tmp_path / "adapter", TARGETS[name])
    by_hand = edited(base, tmp_path / "by_hand", lambda _: {key: t.to(dtype) for key, t in merged.items()})
    convert(by_hand, tmp_path / "expected")
    report = convert(tmp_path / "adapter", tmp_path / "out", base=base)
    assert report.temperature == pytest.approx(0.041)
    assert report.temperature_from == "base_model.model.sim.temp in adapter_model.safetensors"
    assert report.base == str(base) and report.dtype == str(dtype).removeprefix("torch.")
    if name == "qwen3_vl":  # what the adapter learned for DeepStack goes the way of DeepStack
        assert "base_model.model.model.visual.deepstack_merger_list.0.linear_fc1.lora_A.weight" in report.dropped
    ours, wanted = weights_of(tmp_path / "out"), weights_of(tmp_path / "expected")
    assert ours.keys() == wanted.keys()
    for key, tensor in wanted.items():
        tolerance = 1e-5 if dtype == torch.float32 else 1e-2  # one step of half precision where rounding is a tie
        assert ours[key].dtype == tensor.dtype
        assert_close(ours[key].float(), tensor.float(), rtol=tolerance / 10, atol=tolerance / 10, msg=key)
    full = {"model_kwargs": {"dtype": torch.float32}}
    got, want = vectors(tmp_path / "out", name, **full), vectors(tmp_path / "expected", name, **full)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-2)
    convert(base, tmp_path / "without")
    assert np.abs(got - vectors(tmp_path / "without", name, **full)).max() > 1e-2


def test_an_adapter_names_its_base_and_may_pick_its_modules_by_a_pattern(tmp_path):
    base = GOLDEN / "qwen2_vl/checkpoint"
    merged = train_adapter(base, tmp_path / "adapter", r"model\.layers\.\d+\..*_proj")
    by_hand = edited(base, tmp_path / "by_hand", lambda _: merged)
    convert(by_hand, tmp_path / "expected")
    assert convert(tmp_path / "adapter", tmp_path / "out").base == str(base)
    np.testing.assert_allclose(vectors(tmp_path / "out"), vectors(tmp_path / "expected"), rtol=0, atol=1e-5)


def test_a_module_with_a_scale_of_its_own_keeps_it(tmp_path):
    base = GOLDEN / "qwen2_vl/checkpoint"
    plain = train_adapter(base, tmp_path / "adapter", TARGETS["qwen2_vl"])
    path = tmp_path / "adapter/adapter_config.json"
    settings = json.loads(path.read_text())
    settings["alpha_pattern"] = {"model.layers.0.self_attn.q_proj": 24}  # twice that of the others
    path.write_text(json.dumps(settings))
    convert(tmp_path / "adapter", tmp_path / "out")
    after = weights_of(tmp_path / "out")
    for module, scale in (("self_attn.q_proj", 2), ("self_attn.k_proj", 1)):
        name = f"layers.0.{module}.weight"
        before = weights_of(base)[f"model.{name}"]
        change = after[f"vlm.language_model.{name}"] - before
        assert_close(change, scale * (plain[f"model.{name}"] - before), rtol=1e-4, atol=1e-5)


def test_an_adapter_whose_weights_fit_no_module_is_refused_with_their_names(tmp_path):
    base = GOLDEN / "qwen2_vl/checkpoint"
    train_adapter(base, tmp_path / "adapter", TARGETS["qwen2_vl"])
    path = tmp_path / "adapter/adapter_model.safetensors"
    tensors = load_file(path)
    tensors["base_model.model.model.layers.9.mlp.up_proj.lora_A.weight"] = torch.zeros(3, 64)
    tensors["base_model.model.extra.weight"] = torch.zeros(3)
    save_file(tensors, path)
    with pytest.raises(ValueError, match=r"no module for: .*extra\.weight.*layers\.9\.mlp\.up_proj\.lora_A"):
        convert(tmp_path / "adapter", tmp_path / "out")


def test_an_adapter_without_a_base_or_with_pickled_weights_is_refused(tmp_path):
    base = GOLDEN / "qwen2_vl/checkpoint"
    train_adapter(base, tmp_path / "adapter", TARGETS["qwen2_vl"])
    path = tmp_path / "adapter/adapter_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"base_model_name_or_path": None}))
    with pytest.raises(ValueError, match="does not name its base; pass base=FOLDER"):
        convert(tmp_path / "adapter", tmp_path / "out")
    (tmp_path / "adapter/adapter_model.safetensors").rename(tmp_path / "adapter/adapter_model.bin")
    with pytest.raises(ValueError, match="pickled weights are not read, save it as safetensors"):
        convert(tmp_path / "adapter", tmp_path / "out", base=base)


def test_pickled_weights_and_unknown_rows_are_refused(tmp_path):
    folder = tmp_path / "pickled"
    shutil.copytree(GOLDEN / "qwen2_vl/checkpoint", folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"holds no \*\.safetensors"):
        convert(folder, tmp_path / "out")
    with pytest.raises(ValueError, match="instruction_rows is 'foo'"):
        convert(GOLDEN / "qwen2_vl/checkpoint", tmp_path / "out", instruction_rows="foo")
