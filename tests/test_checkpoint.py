"""New checkpoints of any backbone."""

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModel, AutoProcessor

from backbones import FAMILIES
from edits import config_of, edited, embedding_rows, weights_of
from umarvel_hf.checkpoint import load_processor, new_model
from umarvel_hf.conversion import convert
from umarvel_hf.modeling.modeling_umarvel import UMarvelModel

TOKENS = ("<emb>", "<instruction_start>", "<instruction_end>")


@pytest.mark.parametrize("family", FAMILIES)
def test_new_adds_three_tokens_whose_rows_are_means_of_those_before(bases, checkpoints, family):
    folder = checkpoints(family)
    config = config_of(folder)
    tokenizer = AutoProcessor.from_pretrained(folder, trust_remote_code=True).tokenizer
    ids = tokenizer.convert_tokens_to_ids(TOKENS)
    known = len(AutoProcessor.from_pretrained(bases(family)).tokenizer)
    assert ids == [known, known + 1, known + 2]
    assert [config[f"{name}_token_id"] for name in ("emb", "instruction_start", "instruction_end")] == ids
    base = AutoModel.from_pretrained(bases(family))
    before, rows = base.get_input_embeddings().weight, embedding_rows(folder)
    assert torch.equal(rows[: ids[0]], before[: ids[0]])
    for row in ids:
        assert_close(rows[row], rows[:row].mean(dim=0), rtol=0, atol=1e-6)
    made = UMarvelModel.from_pretrained(folder).vlm
    others = dict(made.named_parameters())
    for name, parameter in base.named_parameters():
        if "embed_tokens" not in name:
            assert torch.equal(others[name], parameter), name


@pytest.mark.parametrize("family", FAMILIES)
def test_new_writes_the_same_checkpoint_again(bases, checkpoints, tmp_path, family):
    again = new_model(bases(family), tmp_path / family)
    for path in checkpoints(family).rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (again / path.relative_to(checkpoints(family))).read_bytes(), path.name


def test_new_is_bidirectional_native_and_mean(checkpoints):
    config = config_of(checkpoints("qwen3_vl"))
    fields = ("bidirectional", "positions", "pooling", "normalize", "init_temperature", "model_type")
    assert [config[name] for name in fields] == [True, "native", "mean", True, 0.05, "umarvel"]
    assert config["vlm_config"]["vision_config"]["deepstack_visual_indexes"] == [0, 1]
    assert not any("lm_head" in name for name in weights_of(checkpoints("qwen3_vl")))


def test_new_grows_an_embedding_without_spare_rows(bases, tmp_path):
    def without_spare_rows(tensors):
        return {
            name: t[:-7].clone() if "embed_tokens" in name or "lm_head" in name else t for name, t in tensors.items()
        }

    def smaller(config):
        config["text_config"]["vocab_size"] -= 7

    base = edited(bases("llava_onevision"), tmp_path / "base", without_spare_rows, smaller)
    out = new_model(base, tmp_path / "out")
    tokenizer = AutoProcessor.from_pretrained(out, trust_remote_code=True).tokenizer
    rows = embedding_rows(out)
    assert len(rows) == len(tokenizer) == config_of(out)["vlm_config"]["text_config"]["vocab_size"]
    assert_close(rows[-1], rows[:-1].mean(dim=0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("make", [new_model, convert])
def test_a_folder_that_holds_files_is_not_written_to(bases, tmp_path, make):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="is not an empty folder; name another one or remove it"):
        make(bases("qwen2_vl"), tmp_path)
    with pytest.raises(FileExistsError, match="is not an empty folder"):
        make(bases("qwen2_vl"), tmp_path / "mine.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("make", [new_model, convert])
def test_a_missing_folder_is_named(tmp_path, make):
    with pytest.raises(FileNotFoundError, match=r"gone' does not exist; give a checkpoint's folder or its Hub id"):
        make(tmp_path / "gone", tmp_path / "out")


def test_a_model_without_pictures_is_no_base(bases, tmp_path):
    def text_only(folder):
        (folder / "processor_config.json").unlink()
        (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "TokenizersBackend"}')

    def as_text(config):
        config.clear()
        config["model_type"] = "qwen2"

    base = edited(bases("qwen2_vl"), tmp_path / "text", config=as_text, files=text_only)
    with pytest.raises(ValueError, match="name a vision-language model with a processor of text and images"):
        new_model(base, tmp_path / "out")


def test_a_processor_is_read_without_asking_to_run_code(checkpoint, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asks"))
    assert load_processor(checkpoint).tokenizer.get_vocab().keys() >= {"<emb>"}


def test_a_checkpoint_does_not_tell_where_its_base_lay(checkpoint, bases):
    assert str(bases("qwen2_vl")) not in (checkpoint / "config.json").read_text()
