"""A Llama inside a Qwen2-VL: the same hidden states on text, and a base like any other."""

from importlib.util import find_spec

import pytest
import torch
from transformers import AutoModel, AutoProcessor, LlamaConfig, LlamaModel

from backbones import byte_tokenizer
from umarvel_hf import smollm2
from umarvel_hf.checkpoint import new_model
from umarvel_hf.encoding import encode, load
from umarvel_hf.fetch import Unreachable
from umarvel_hf.smollm2 import VISION_TOKENS, build_smollm2_vl, load_smollm2

VISION = {"vision_layers": 2, "vision_hidden": 16, "vision_heads": 2, "min_pixels": 56**2, "max_pixels": 56**2}
TEXTS = ["The capital of France is Paris.", "  12 dogs,  3 cats\n", "x"]


@pytest.fixture
def tiny_llama(monkeypatch):
    """A random Llama with a byte tokenizer, where SmolLM2 would be loaded."""
    tokenizer = byte_tokenizer(["<|im_start|>", "<|im_end|>"], eos_token="<|im_end|>")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        rope = {"rope_type": "default", "rope_theta": 5e4}
        config = LlamaConfig(
            **sizes, num_key_value_heads=1, vocab_size=len(tokenizer), initializer_range=0.3, rope_parameters=rope
        )
        llama = LlamaModel(config).eval()
    monkeypatch.setattr(smollm2, "load_smollm2", lambda: (llama, tokenizer))
    return llama


@torch.no_grad()
def assert_same_on_text(folder, llama):
    model, processor = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    for text in TEXTS:
        ids = processor.tokenizer(text, return_tensors="pt").input_ids
        found, expected = (each(input_ids=ids).last_hidden_state for each in (model.eval(), llama))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_the_language_model_says_what_it_said(tiny_llama, tmp_path):
    assert_same_on_text(build_smollm2_vl(tmp_path / "base", seed=0, **VISION), tiny_llama)


def test_new_tokens_start_as_the_mean_of_all_and_biases_as_nothing(tiny_llama, tmp_path):
    folder = build_smollm2_vl(tmp_path / "base", seed=0, **VISION)
    model, processor = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    rows = model.get_input_embeddings().weight
    assert len(rows) == len(processor.tokenizer) == len(tiny_llama.embed_tokens.weight) + len(VISION_TOKENS)
    mean = tiny_llama.embed_tokens.weight.mean(dim=0)
    for token in VISION_TOKENS:
        torch.testing.assert_close(rows[processor.tokenizer.convert_tokens_to_ids(token)], mean)
    weights = model.language_model.named_parameters()
    assert all(not weight.any() for name, weight in weights if name.endswith("_proj.bias"))


def test_the_seed_draws_the_vision_tower_and_leaves_other_draws_alone(tiny_llama, tmp_path):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    built = [build_smollm2_vl(tmp_path / name, seed=seed, **VISION) for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    assert torch.equal(torch.random.get_rng_state(), before)
    one, same, other = ((folder / "model.safetensors").read_bytes() for folder in built)
    assert one == same != other


def test_it_becomes_a_checkpoint_that_reads_pictures_and_text(tiny_llama, tmp_path, pictures):
    new_model(build_smollm2_vl(tmp_path / "base", seed=0, **VISION), tmp_path / "new")
    items = ["a dog", {"image": pictures[0]}, {"image": pictures[1], "text": "a dog"}]
    vectors = encode(load(str(tmp_path / "new"), device="cpu"), items)
    assert vectors.shape == (3, 32) and len({tuple(vector) for vector in vectors.round(4).tolist()}) == 3


def test_a_build_that_was_cut_short_is_not_taken_for_a_base(tiny_llama, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(smollm2, "Qwen2VLProcessor", lambda **kwargs: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            build_smollm2_vl(tmp_path / "base", seed=0, **VISION)
    assert list(tmp_path.iterdir()) == []


def test_without_gguf_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(smollm2, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'umarvel_hf\[smollm2\]'"):
        load_smollm2()


@pytest.mark.slow
@pytest.mark.skipif(find_spec("gguf") is None, reason="needs gguf: pip install 'umarvel_hf[smollm2]'")
def test_smollm2_says_in_it_what_it_says_alone(tmp_path, monkeypatch):
    try:
        llama, tokenizer = load_smollm2()
    except Unreachable as error:
        pytest.skip(str(error))
    assert tokenizer.tokenize("  12") == ["ĠĠ", "1", "2"]  # GPT-2's own splits would give Ġ, Ġ, 1, 2
    monkeypatch.setattr(smollm2, "load_smollm2", lambda: (llama, tokenizer))  # half a minute each time
    assert_same_on_text(build_smollm2_vl(tmp_path / "base", seed=0), llama.eval())
