"""Sequences in one row of tokens: the vectors of a padded batch, and none that sees another."""

import pytest
import torch
from torch.testing import assert_close

from backbones import FAMILIES
from umarvel_hf.encoding import load
from umarvel_hf.packing import can_pack, embed_packed, packed_attention
from umarvel_hf.vision import seen_once

INSTRUCTION = "Find an image that matches the given text."


def packed(model, features):
    with torch.inference_mode(), packed_attention(model):
        return embed_packed(model, features)


@pytest.fixture(scope="module")
def items(pictures):
    return ["a dog", {"image": pictures[0], "text": "red"}, "a long text " * 9, {"image": [pictures[1], pictures[0]]}]


@pytest.mark.parametrize("prompt", [None, INSTRUCTION])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_vectors_are_those_of_a_padded_batch(embedders, items, family, prompt):
    embedder = embedders(family)
    model, features = embedder[0].model, embedder.preprocess(items, prompt=prompt)
    with torch.inference_mode():
        expected = model(**{name: one for name, one in features.items() if isinstance(one, torch.Tensor)})
    assert_close(packed(model, features), expected.pooler_output, rtol=0, atol=1e-5)
    assert_close(packed(model, seen_once(model.vlm, features)), expected.pooler_output, rtol=0, atol=1e-5)
    assert model.config.get_text_config()._attn_implementation == "sdpa"


def test_films_are_packed_too(embedder, frames, items):
    features = embedder.preprocess([*items, {"video": frames, "text": "a film"}])
    with torch.inference_mode():
        expected = embedder(dict(features))["sentence_embedding"]
    assert_close(packed(embedder[0].model, features), expected, rtol=0, atol=1e-5)


def test_no_sequence_sees_another(embedder):
    model = embedder[0].model
    one = packed(model, embedder.preprocess(["a dog", "a bench", "a woman and a dog"]))
    other = packed(model, embedder.preprocess(["a dog", "something else entirely, and longer", "a woman and a dog"]))
    assert_close(one[[0, 2]], other[[0, 2]], rtol=0, atol=1e-6)
    assert (one[1] - other[1]).abs().max() > 1e-3


def test_a_padded_batch_stays_masked_meanwhile(embedder):
    features = embedder.preprocess(["a dog", "a text that is a good deal longer than the other"])
    with torch.inference_mode():
        expected = embedder(dict(features))["sentence_embedding"]
        with packed_attention(embedder[0].model):
            assert_close(embedder(dict(features))["sentence_embedding"], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("settings", [{"bidirectional": False}, {"positions": "sequential"}, {"pooling": "last"}])
def test_what_a_checkpoint_says_of_attention_positions_and_pooling_holds(checkpoint, items, settings):
    embedder = load(checkpoint, config_kwargs=settings)
    features = embedder.preprocess(items)
    with torch.inference_mode():
        expected = embedder(dict(features))["sentence_embedding"]
    assert_close(packed(embedder[0].model, features), expected, rtol=0, atol=1e-5)


def test_on_a_cpu_batches_are_padded(embedder):
    assert not can_pack(embedder[0].model)
