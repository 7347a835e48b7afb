"""Pictures are seen once, and patches embedded by products: the same vectors."""

import pytest
import torch
from torch.testing import assert_close

from umarvel_hf.vision import distinct, patches_as_products, seen_once

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


def features_of(embedder, items):
    return embedder.preprocess(items)


def test_pictures_that_differ_are_told_apart():
    generator = torch.Generator().manual_seed(0)
    one, two = (torch.randn(4, 6, generator=generator) for _ in range(2))
    swapped = one[[1, 0, 2, 3]]  # the same sums, at the places that are looked at first
    pixels = torch.cat([one, two, one, swapped, one])
    grids = torch.tensor([[1, 2, 2], [1, 2, 2], [1, 2, 2], [1, 2, 2], [1, 4, 1]])
    assert distinct(pixels, grids) == ([0, 1, 3, 4], [0, 1, 0, 2, 3])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_picture_that_is_there_twice_is_seen_once(embedders, pictures, frames, family):
    embedder = embedders(family)
    vlm = embedder[0].model.vlm
    items = [{"image": pictures[0], "text": "red"}, {"image": [pictures[1], pictures[0]]}, "a dog", pictures[0]]
    seen = []
    handle = vlm.visual.register_forward_pre_hook(
        lambda module, given, named: seen.append(len(given[0] if given else named["hidden_states"])), with_kwargs=True
    )
    with torch.inference_mode():
        expected = embedder(features_of(embedder, items))["sentence_embedding"]
        features = seen_once(vlm, features_of(embedder, items))
        assert_close(embedder(features)["sentence_embedding"], expected)
        both = [*items, {"video": frames, "text": "a film"}]
        expected = embedder(features_of(embedder, both))["sentence_embedding"]
        assert_close(embedder(seen_once(vlm, features_of(embedder, both)))["sentence_embedding"], expected)
    handle.remove()
    patches = features_of(embedder, items)["image_grid_thw"].prod(dim=1)
    assert seen[:2] == [int(patches.sum()), int(patches[:2].sum())]


def test_a_backbone_that_takes_no_outputs_of_its_tower_gets_pixels(embedder, pictures, monkeypatch):
    features, vlm = features_of(embedder, [pictures[0], pictures[0]]), embedder[0].model.vlm
    monkeypatch.setattr(vlm, "forward", lambda input_ids, pixel_values: None)
    assert seen_once(vlm, features) is features


def test_a_batch_without_repetitions_stays_as_it_is(embedder, pictures):
    features = features_of(embedder, pictures)
    assert seen_once(embedder[0].model.vlm, features) is features
    assert "mm_encoder_outputs" in seen_once(embedder[0].model.vlm, features, all_seen=True)


@pytest.mark.parametrize("family", [*FAMILIES, "smolvlm", "llava_onevision"])
def test_patches_by_products_give_the_same_vectors(embedders, pictures, family):
    embedder = embedders(family)
    vlm = embedder[0].model.vlm
    with torch.inference_mode():
        expected = embedder(features_of(embedder, pictures))["sentence_embedding"]
        with patches_as_products(vlm):
            found = embedder(features_of(embedder, pictures))["sentence_embedding"]
    assert_close(found, expected, rtol=0, atol=1e-5)
    assert not any("forward" in vars(module) for module in vlm.modules())
