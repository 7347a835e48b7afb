"""What a vector depends on, and what it must not depend on, for every backbone."""

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from torch.testing import assert_close
from transformers import AutoModel, AutoProcessor

from backbones import FAMILIES
from umarvel_hf.modeling import configuration_umarvel
from umarvel_hf.modeling.configuration_umarvel import UMarvelConfig
from umarvel_hf.modeling.modeling_umarvel import Similarity, UMarvelModel, instruction_span, sequential_positions

INSTRUCTION = "Find an image that matches the given text."
BOOKKEEPING = ("modality", "num_images_per_sample", "num_videos_per_sample")


def features(embedder, items, prompt=None, padding_side="right"):
    """What the checkpoint's processor makes of items, and nothing else."""
    given = embedder.preprocess(items, prompt=prompt, processing_kwargs={"text": {"padding_side": padding_side}})
    return {name: value for name, value in given.items() if name not in BOOKKEEPING}


def vectors(model, *args, **kwargs):
    with torch.no_grad():
        return model(**features(*args, **kwargs)).pooler_output


def unit(vector):
    return vector / vector.norm(dim=-1, keepdim=True)


def kept_by_hand(row, mask, start, end):
    """Which tokens of a row count, one by one."""
    inside, kept = False, []
    for token, real in zip(row.tolist(), mask.tolist(), strict=True):
        inside = inside or token == start
        kept.append(bool(real) and not inside)
        inside = inside and token != end
    return torch.tensor(kept)


@pytest.fixture(scope="module", params=[(f, a) for f in FAMILIES for a in ("eager", "sdpa")], ids="-".join)
def case(request, checkpoints, embedders):
    """A model under one attention implementation, and an embedder of the same weights for its processor."""
    family, attention = request.param
    model = UMarvelModel.from_pretrained(checkpoints(family), attn_implementation=attention)
    assert model.vlm.config._attn_implementation == model.config.get_text_config()._attn_implementation == attention
    return model, embedders(family)


@pytest.fixture(scope="module")
def items(pictures):
    return [
        "a dog",
        "a dog and a woman are playing on the bench, and then some more words to make it long",
        {"image": pictures[0]},
        {"image": pictures[1], "text": "a bench"},
        {"image": pictures[:2], "text": "two at once"},
    ]


def test_padding_batching_and_order_never_change_a_vector(case, items):
    model, embedder = case
    alone = torch.cat([vectors(model, embedder, [item], INSTRUCTION) for item in items])
    assert (alone @ alone.T).fill_diagonal_(0).max() < 0.999  # the items are told apart
    for side in ("left", "right"):
        batch = features(embedder, items, INSTRUCTION, side)
        assert (batch["attention_mask"][:, 0 if side == "left" else -1] == 0).any()
        assert_close(vectors(model, embedder, items, INSTRUCTION, side), alone, rtol=0, atol=1e-5)
        backwards = vectors(model, embedder, items[::-1], INSTRUCTION, side)
        assert_close(backwards.flip(0), alone, rtol=0, atol=1e-5)


def test_a_video_is_embedded_alike_alone_and_beside_others(case, frames):
    model, embedder = case
    film = {"video": frames, "text": "a film"}
    other = {"video": frames[::-1]}
    alone = torch.cat([vectors(model, embedder, [item], INSTRUCTION) for item in (film, other, "a dog")])
    assert (alone @ alone.T).fill_diagonal_(0).max() < 0.9999
    for side in ("left", "right"):
        together = vectors(model, embedder, [film, other, "a dog"], INSTRUCTION, side)
        assert_close(together, alone, rtol=0, atol=1e-5)


def test_the_last_token_reaches_the_first(case, items):
    model, embedder = case
    batch = features(embedder, [items[3]])
    changed = dict(batch, input_ids=batch["input_ids"].clone())
    changed["input_ids"][0, -1] = 40
    with torch.no_grad():
        before, after = (model(**each).last_hidden_state[0, 0] for each in (batch, changed))
    assert (before - after).abs().max() > 1e-3


def test_an_instruction_acts_through_attention_alone(case, items):
    model, embedder = case
    config = model.config
    start, end = config.instruction_start_token_id, config.instruction_end_token_id
    batch = features(embedder, items, INSTRUCTION, padding_side="left")
    with torch.no_grad():
        outputs = model(**batch)
    length = len(embedder.tokenizer(INSTRUCTION, add_special_tokens=False)["input_ids"])
    for row, mask, states, vector in zip(
        batch["input_ids"], batch["attention_mask"], outputs.last_hidden_state, outputs.pooler_output, strict=True
    ):
        kept = kept_by_hand(row, mask, start, end)
        assert mask.sum() - kept.sum() == length + 2  # the instruction and its two markers
        assert_close(vector, unit(states[kept].mean(dim=0)), rtol=0, atol=1e-6)
    other = vectors(model, embedder, items, "Name the thing that is not there.")
    plain = vectors(model, embedder, items)
    for different in (other, plain):
        assert ((different - outputs.pooler_output).norm(dim=-1) > 1e-3).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_several_pictures_count_and_so_does_their_order(embedders, pictures, family):
    one, two, swapped = embedders(family).encode(
        [{"image": pictures[:1]}, {"image": pictures[:2]}, {"image": pictures[1::-1]}]
    )
    assert one @ two < 0.9999 and two @ swapped < 0.99999


@pytest.mark.parametrize("family", FAMILIES)
def test_sequential_positions_count_tokens_and_native_ones_are_the_backbones(checkpoints, embedders, pictures, family):
    items = ["a dog", {"image": pictures, "text": "three"}]
    native = UMarvelModel.from_pretrained(checkpoints(family))
    sequential = UMarvelModel.from_pretrained(checkpoints(family), positions="sequential")
    batch = features(embedders(family), items, padding_side="left")
    mask = batch["attention_mask"]
    positions = torch.stack(
        [torch.tensor([max(int(row[: at + 1].sum()) - 1, 0) for at in range(len(row))]) for row in mask]
    )
    spatial = family.startswith("qwen")  # their rotary embedding has three axes
    with torch.no_grad():
        by_hand = native.vlm(**batch, position_ids=positions.expand(3, -1, -1) if spatial else positions)
        own = native.vlm(**batch).last_hidden_state
        outputs, natively = sequential(**batch), native(**batch)
    real = mask.bool()
    assert_close(outputs.last_hidden_state[real], by_hand.last_hidden_state[real], rtol=0, atol=1e-5)
    assert_close(natively.last_hidden_state[real], own[real], rtol=0, atol=0)
    apart = (outputs.pooler_output - natively.pooler_output).norm(dim=-1)
    assert apart[0] < 1e-5  # without pictures all axes count alike
    assert (apart[1] > 1e-3) == spatial


@pytest.mark.parametrize("side", ["left", "right"])
def test_last_pooling_takes_the_last_token_outside_padding_and_instruction(checkpoint, embedder, items, side):
    model = UMarvelModel.from_pretrained(checkpoint, pooling="last")
    batch = features(embedder, items, INSTRUCTION, side)
    with torch.no_grad():
        outputs = model(**batch)
    for row, (mask, states) in enumerate(zip(batch["attention_mask"], outputs.last_hidden_state, strict=True)):
        last = mask.nonzero().max()
        assert_close(outputs.pooler_output[row], unit(states[last]), rtol=0, atol=1e-6)


def test_last_pooling_skips_an_instruction_at_the_end(checkpoint):
    model = UMarvelModel.from_pretrained(checkpoint, pooling="last")
    start, end = model.config.instruction_start_token_id, model.config.instruction_end_token_id
    ids = torch.tensor([[5, 6, 7, start, 8, end]])
    with torch.no_grad():
        outputs = model(input_ids=ids)
    assert_close(outputs.pooler_output[0], unit(outputs.last_hidden_state[0, 2]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_causal_model_is_causal_and_the_configuration_remembers(checkpoints, embedders, tmp_path, family):
    UMarvelModel.from_pretrained(checkpoints(family), bidirectional=False).save_pretrained(tmp_path)
    for folder, overrides in ((checkpoints(family), {"bidirectional": False}), (tmp_path, {})):
        model = UMarvelModel.from_pretrained(folder, **overrides)
        batch = features(embedders(family), ["a dog on a bench"])
        changed = dict(batch, input_ids=batch["input_ids"].clone())
        changed["input_ids"][0, -1] = 40
        with torch.no_grad():
            before, after = (model(**each).last_hidden_state[0] for each in (batch, changed))
        assert_close(before[:-1], after[:-1], rtol=0, atol=1e-6)
        assert (before[-1] - after[-1]).abs().max() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_vectors_are_float32_of_length_one_in_every_dtype(checkpoints, embedders, items, family, dtype):
    model = UMarvelModel.from_pretrained(checkpoints(family), dtype=dtype)
    assert model.vlm.dtype == dtype and model.similarity.log_temperature.dtype == torch.float32
    batch = features(embedders(family), items, INSTRUCTION)
    with torch.no_grad():
        outputs = model(**batch)
    assert outputs.last_hidden_state.dtype == dtype and outputs.pooler_output.dtype == torch.float32
    assert_close(outputs.pooler_output.norm(dim=-1), torch.ones(len(items)), rtol=0, atol=1e-6)
    full = vectors(UMarvelModel.from_pretrained(checkpoints(family)), embedders(family), items, INSTRUCTION)
    assert ((full * outputs.pooler_output).sum(dim=-1) > 0.99).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_checkpointing_changes_no_gradient(checkpoints, embedders, items, family):
    gradients = []
    for checkpointing in (False, True):
        model = UMarvelModel.from_pretrained(checkpoints(family)).train()
        if checkpointing:
            model.activation_checkpointing_enable()
            assert model.is_activation_checkpointing
        weights = torch.linspace(-1, 1, model.config.hidden_size)
        (model(**features(embedders(family), items, INSTRUCTION)).pooler_output @ weights).sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    plain, checkpointed = gradients
    assert plain.keys() == checkpointed.keys()
    assert any("vision" in name or "visual" in name for name in plain) and any("layers" in name for name in plain)
    for name, gradient in plain.items():
        assert_close(checkpointed[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("device_map", ["cpu", "auto"])
def test_a_device_map_changes_nothing(checkpoint, embedder, items, device_map):
    placed = UMarvelModel.from_pretrained(checkpoint, device_map=device_map)
    expected = vectors(embedder[0].model, embedder, items, INSTRUCTION)
    assert_close(vectors(placed, embedder, items, INSTRUCTION), expected, rtol=0, atol=1e-6)


def test_flash_attention_is_declared():
    assert UMarvelModel._supports_flash_attn and UMarvelModel._supports_sdpa


def test_the_backbone_keeps_no_cache_and_no_language_model_head(checkpoint):
    model = UMarvelModel.from_pretrained(checkpoint)
    seen = {}
    model.vlm.register_forward_hook(lambda *args: seen.update(args[2]), with_kwargs=True)
    model(input_ids=torch.tensor([[5, 6]]))
    assert seen["use_cache"] is False
    assert not [name for name, _ in model.named_parameters() if "lm_head" in name]


def test_a_row_with_nothing_to_pool_is_an_error_that_names_it(checkpoint):
    model = UMarvelModel.from_pretrained(checkpoint)
    start, end = model.config.instruction_start_token_id, model.config.instruction_end_token_id
    with pytest.raises(ValueError, match="Row 1 of 2 has no token outside padding and instruction"):
        model(input_ids=torch.tensor([[5, 6, 7], [start, 5, end]]))
    with pytest.raises(ValueError, match="input_ids is None"):
        model(inputs_embeds=torch.zeros(1, 2, 32))


def test_a_configuration_without_instruction_tokens_pools_everything(checkpoint, embedder):
    model = UMarvelModel.from_pretrained(checkpoint, instruction_start_token_id=None, instruction_end_token_id=None)
    batch = features(embedder, ["a dog"], INSTRUCTION)
    with torch.no_grad():
        outputs = model(**batch)
    assert_close(outputs.pooler_output[0], unit(outputs.last_hidden_state[0].mean(dim=0)), rtol=0, atol=1e-6)


def test_normalize_off_returns_the_mean_itself(checkpoint, embedder):
    model = UMarvelModel.from_pretrained(checkpoint, normalize=False)
    batch = features(embedder, ["a dog"])
    with torch.no_grad():
        outputs = model(**batch)
    assert_close(outputs.pooler_output, outputs.last_hidden_state.mean(dim=1), rtol=0, atol=1e-6)
    assert (outputs.pooler_output.norm() - 1).abs() > 0.01


def test_the_span_runs_from_marker_to_marker():
    s, e = 8, 9
    rows = torch.tensor([
        [1, s, 2, e, 3, 4],
        [s, 1, e, s, 2, e],  # two spans
        [1, s, 2, 3, 4, 5],  # never closed
        [1, s, 2, e, e, 3],  # an end that closes nothing is a token like others
        [1, e, 2, 3, 4, 5],
        [1, 2, 3, 4, 5, 6],
    ])  # fmt: skip
    assert instruction_span(rows, s, e).int().tolist() == [
        [0, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 1],
        [0, 1, 1, 1, 1, 1],
        [0, 1, 1, 1, 0, 0],
        [0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
    ]


def test_sequential_positions_skip_padding_on_either_side():
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0]])
    positions = sequential_positions(mask, axes=None)
    assert positions[mask.bool()].tolist() == [0, 1, 2, 0, 1, 2]
    assert torch.equal(sequential_positions(mask, axes=3), positions.expand(3, 2, 5))


def test_the_temperature_is_held_as_its_logarithm():
    similarity = Similarity(0.05)
    assert similarity.temperature.item() == pytest.approx(0.05)
    queries, candidates = torch.eye(2), torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, -1.0]])
    expected = torch.tensor([[20.0, 12.0, 0.0], [0.0, 16.0, -20.0]])
    assert_close(similarity(queries, candidates), expected)
    similarity(queries, candidates)[0, 0].backward()
    assert similarity.log_temperature.grad.item() == pytest.approx(-20.0)  # d/dlog t of 1/t


def test_a_fresh_model_starts_at_its_initial_temperature(checkpoint):
    config = UMarvelConfig.from_pretrained(checkpoint, init_temperature=0.07)
    assert UMarvelModel(config).similarity.temperature.item() == pytest.approx(0.07)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("pooling", "max", "pooling is 'max'; it must be one of"),
        ("positions", "3d", "positions is '3d'; it must be one of"),
        ("init_temperature", 0.0, "init_temperature is 0.0; it must be above 0"),
        ("instruction_start_token_id", 7, "give both, or neither"),
    ],
)
def test_a_configuration_refuses_what_it_does_not_know(field, value, message):
    with pytest.raises(ValueError, match=message):
        UMarvelConfig(**{field: value})


def test_a_configuration_survives_its_own_file(checkpoint, tmp_path):
    fields = {"bidirectional": False, "pooling": "last", "positions": "sequential", "normalize": False}
    config = UMarvelConfig.from_pretrained(checkpoint, **fields, init_temperature=0.02)
    config.save_pretrained(tmp_path)
    again = UMarvelConfig.from_pretrained(tmp_path)
    assert {name: getattr(again, name) for name in fields} == fields and again.init_temperature == 0.02
    assert again.to_dict() == config.to_dict() and again.hidden_size == 32


def test_old_transformers_is_refused(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(transformers, "__version__", "5.17.9")
    wanted = r"needs transformers >= 5\.18\.0, found 5\.17\.9"
    path = Path(configuration_umarvel.__file__)
    spec = importlib.util.spec_from_file_location("configuration_umarvel_again", path)
    with pytest.raises(ImportError, match=wanted):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    folder = shutil.copytree(checkpoint, tmp_path / "under_old_transformers")
    with pytest.raises(ImportError, match=wanted):
        AutoModel.from_pretrained(folder, trust_remote_code=True)


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("family", FAMILIES)
def test_save_load_save_writes_the_same_bytes_twice_over(checkpoints, tmp_path, family):
    source = checkpoints(family)
    for at in range(2):
        target = tmp_path / f"copy{at}"
        AutoModel.from_pretrained(source, trust_remote_code=True).save_pretrained(target)
        AutoProcessor.from_pretrained(source, trust_remote_code=True).save_pretrained(target)
        shutil.copy(source / "README.md", target)  # the card belongs to whoever made the checkpoint
        assert files_of(target) == files_of(checkpoints(family))
        source = target


def test_a_checkpoint_holds_every_file_of_the_design(checkpoint):
    assert set(files_of(checkpoint)) == {
        "config.json",
        "model.safetensors",
        "configuration_umarvel.py",
        "modeling_umarvel.py",
        "sentence_transformers_umarvel.py",
        "messages_umarvel.py",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "modules.json",
        "sentence_bert_config.json",
        "1_Normalize/config.json",
        "config_sentence_transformers.json",
        "README.md",
    }


def test_code_of_another_version_in_the_folder_is_replaced(checkpoint, tmp_path):
    names = ("modeling_umarvel.py", "sentence_transformers_umarvel.py", "messages_umarvel.py")
    for name in names:
        (tmp_path / name).write_text("raise ImportError('old')\n")
    UMarvelModel.from_pretrained(checkpoint).save_pretrained(tmp_path)
    for name in names:
        assert (tmp_path / name).read_bytes() == (checkpoint / name).read_bytes()


def test_a_loaded_model_may_be_saved_over_itself(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "over_itself")
    AutoModel.from_pretrained(folder, trust_remote_code=True).save_pretrained(folder)
    assert files_of(folder) == files_of(checkpoint)


def test_a_model_without_normalisation_asks_sentence_transformers_for_none(checkpoint, tmp_path):
    model = UMarvelModel.from_pretrained(checkpoint, normalize=False)
    model.save_pretrained(tmp_path)
    assert not (tmp_path / "1_Normalize").exists()
    assert b"Normalize" not in (tmp_path / "modules.json").read_bytes()


def test_the_embedding_rows_can_be_replaced_and_resized(checkpoint, embedder):
    model = UMarvelModel.from_pretrained(checkpoint)
    rows = model.get_input_embeddings().num_embeddings
    model.resize_token_embeddings(rows + 3, mean_resizing=False)
    assert model.get_input_embeddings().num_embeddings == rows + 3
    expected = vectors(embedder[0].model, embedder, ["a dog"])
    assert_close(vectors(model, embedder, ["a dog"]), expected, rtol=0, atol=0)
    assert model.config.get_text_config().vocab_size == rows + 3
    assert np.isfinite(expected.numpy()).all()


def test_a_field_set_at_load_is_checked_too(checkpoint):
    with pytest.raises(ValueError, match="pooling is 'max'"):
        UMarvelModel.from_pretrained(checkpoint, pooling="max")
