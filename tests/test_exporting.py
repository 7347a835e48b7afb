"""A backbone comes back as transformers' own model: alone, or with the head of what it was made of."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor

from edits import edited
from umarvel_hf.checkpoint import new_model
from umarvel_hf.conversion import convert
from umarvel_hf.exporting import export

GOLDEN = Path(__file__).parent / "golden"
FAMILIES = ("qwen2_vl", "qwen3_vl", "smolvlm", "llava_onevision")


def processed(folder, picture):
    processor = AutoProcessor.from_pretrained(folder)
    chat = [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "a dog"}]}]
    return processor.apply_chat_template(chat, tokenize=True, return_dict=True, return_tensors="pt")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bare_backbone_has_the_embedders_states(checkpoints, pictures, tmp_path, family):
    out = export(checkpoints(family), tmp_path / "out", bare=True)
    assert not list(out.glob("*.py")) and "auto_map" not in json.loads((out / "config.json").read_text())
    inputs = processed(out, pictures[0])
    with torch.no_grad():
        ours = AutoModel.from_pretrained(checkpoints(family), trust_remote_code=True)(**inputs).last_hidden_state
        theirs = AutoModel.from_pretrained(out, trust_remote_code=False)(**inputs).last_hidden_state
    assert torch.equal(ours, theirs)


def assert_same_model(folder, base):
    """All weights of a language model are its base's but rows that the base's tokenizer has no token for."""
    before, after = (AutoModelForImageTextToText.from_pretrained(one).state_dict() for one in (base, folder))
    known = len(AutoProcessor.from_pretrained(base).tokenizer)
    assert before.keys() == after.keys()
    for name in before:
        rows = slice(known) if "embed_tokens" in name else slice(None)
        assert before[name].shape == after[name].shape and torch.equal(before[name][rows], after[name][rows]), name


@pytest.mark.parametrize("family", FAMILIES)
def test_with_its_head_it_is_the_base_again(bases, checkpoints, pictures, tmp_path, family):
    out = export(checkpoints(family), tmp_path / "out", base=bases(family))
    assert_same_model(out, bases(family))
    inputs = processed(out, pictures[0])
    with torch.no_grad():
        logits = [AutoModelForImageTextToText.from_pretrained(one)(**inputs).logits for one in (bases(family), out)]
    assert torch.equal(*logits)
    assert (out / "chat_template.jinja").read_text() == (bases(family) / "chat_template.jinja").read_text()


def test_rows_of_tokens_that_were_added_are_left_out(bases, tmp_path):
    def without_spare_rows(tensors):
        wide = ("embed_tokens", "lm_head")
        return {name: t[:-7].clone() if any(one in name for one in wide) else t for name, t in tensors.items()}

    def smaller(config):
        config["text_config"]["vocab_size"] -= 7

    base = edited(bases("llava_onevision"), tmp_path / "base", without_spare_rows, smaller)
    grown = new_model(base, tmp_path / "grown")
    assert_same_model(export(grown, tmp_path / "out", base=base), base)


def test_tied_embeddings_stay_tied(bases, tmp_path):
    def without_head(tensors):
        return {name: tensor for name, tensor in tensors.items() if "lm_head" not in name}

    def tied(config):
        config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = True

    base = edited(bases("qwen3_vl"), tmp_path / "base", without_head, tied)
    out = export(new_model(base, tmp_path / "ours"), tmp_path / "out", base=base)
    model = AutoModelForImageTextToText.from_pretrained(out)
    assert (
        model.config.get_text_config().vocab_size
        == json.loads((base / "config.json").read_text())["text_config"]["vocab_size"]
    )
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_a_converted_checkpoint_gives_its_language_model_back(tmp_path):
    published = GOLDEN / "qwen2_vl/checkpoint"
    convert(published, tmp_path / "ours")
    out = export(tmp_path / "ours", tmp_path / "out", base=published)
    head = load_file(out / "model.safetensors")["lm_head.weight"]
    assert torch.equal(head, load_file(published / "model.safetensors")["lm_head.weight"])


def test_what_cannot_be_exported_is_refused(bases, checkpoints, tmp_path):
    out = tmp_path / "out"
    for wrong in ({}, {"bare": True, "base": bases("qwen2_vl")}):
        with pytest.raises(ValueError, match=r"give bare \(--bare\) for the backbone alone, or base"):
            export(checkpoints("qwen2_vl"), out, **wrong)
    with pytest.raises(ValueError, match="is no U-MARVEL checkpoint"):
        export(bases("qwen2_vl"), out, bare=True)
    with pytest.raises(
        ValueError, match=r"has a backbone of type qwen2_vl, width 32, layers 2, base .* of type qwen3_vl"
    ):
        export(checkpoints("qwen2_vl"), out, base=bases("qwen3_vl"))
    bare = export(checkpoints("qwen2_vl"), tmp_path / "bare", bare=True)
    with pytest.raises(ValueError, match=r"has no lm_head\.weight"):
        export(checkpoints("qwen2_vl"), out, base=bare)
    assert not out.exists()
    with pytest.raises(FileExistsError, match="is not an empty folder"):
        export(checkpoints("qwen2_vl"), bare, bare=True)
