"""Tokens counted before media are decoded are those of the processor; batches keep to their budget."""

import numpy as np
import pytest

from backbones import FAMILIES
from pictures import picture
from umarvel_hf.modeling.messages_umarvel import ItemError
from umarvel_hf.planning import PADDING, SMALL, TokenCounter, picture_size, plan

INSTRUCTION = "Find an image that matches the given text."


@pytest.fixture(scope="module")
def items(pictures, tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "turned.jpg"
    exif = pictures[1].getexif()
    exif[0x0112] = 6  # a quarter turn
    pictures[1].save(path, exif=exif)
    said = [{"type": "text", "text": "what is"}, {"type": "image", "image": pictures[2]}, {"type": "text", "text": "?"}]
    return [
        "a dog",
        "a long text " * 20,
        " white space\n ",
        "é 犬 \u0011",
        "a token <|im_end|> spelled out, and <image>",
        "  spaced",
        {"image": pictures[0], "text": "red"},
        {"image": pictures[0], "text": ""},
        {"image": [pictures[1], pictures[0]]},
        {"image": path},
        path,
        np.asarray(pictures[2]),
        [{"role": "user", "content": said}, {"role": "assistant", "content": "a bench"}],
        [{"role": "system", "content": "Look."}, {"role": "user", "content": "a dog"}],
        {"role": "user", "content": "a dog"},
    ]


@pytest.mark.parametrize("prompt", [None, INSTRUCTION])
@pytest.mark.parametrize("family", FAMILIES)
def test_counts_are_those_of_the_processor(embedders, items, family, prompt):
    module = embedders(family)[0]
    counted = TokenCounter(module).count(items, prompt)
    for item, count, ids in zip(items, counted.counts, counted.ids, strict=True):
        expected = module.preprocess([item], prompt=prompt)["input_ids"][0].tolist()
        assert count == len(expected), item
        assert ids is None or ids.tolist() == expected
    assert [ids is not None for ids in counted.ids] == [True] * 6 + [False] * 7 + [True] * 2


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "smolvlm", "llava_onevision"])
def test_films_are_counted_from_their_headers(embedders, film, frames, family):
    module = embedders(family)[0]
    items = [film, {"video": frames, "text": "a film"}, {"video": np.stack([np.asarray(one) for one in frames])}]
    items += [{"video": {"path": film, "num_frames": 12}}, {"video": {"path": str(film), "fps": 1.0}}]
    counted = TokenCounter(module).count(items)
    expected = [module.preprocess([item])["input_ids"].shape[1] for item in items]
    assert counted.counts.tolist() == expected
    assert counted.alone.tolist() == [family in ("smolvlm", "llava_onevision")] * 5


@pytest.mark.parametrize(("family", "times"), [("qwen2_vl", 1), ("qwen3_vl", 3)])
def test_films_of_one_size_are_measured_once_unless_their_times_are_written(embedders, frames, family, times):
    counter = TokenCounter(embedders(family)[0])
    frame = np.stack([np.asarray(one) for one in frames])
    clocks = [{"total_num_frames": 900, "fps": fps, "frames_indices": [*range(len(frame))]} for fps in (1.0, 2.0, 8.0)]
    films = [{"video": {"array": frame, "video_metadata": clock}} for clock in clocks]
    counter.count(films)
    assert len(counter._known) == times


def test_no_item_beyond_the_models_length_has_tokens_of_its_own(embedder, monkeypatch):
    monkeypatch.setattr(type(embedder[0]), "max_seq_length", 30, raising=False)
    counted = TokenCounter(embedder[0]).count(["a dog", "a dog " * 40])
    assert counted.counts[1] == 30 and counted.ids[1] is None


def test_what_is_no_item_is_named_before_anything_is_encoded(embedder):
    with pytest.raises(ItemError, match=r"^Item 1 .*a float is not an item"):
        TokenCounter(embedder[0]).count(["a dog", 3.5])


def test_a_picture_that_cannot_be_read_counts_as_nothing(embedder, tmp_path):
    path = tmp_path / "broken.png"
    path.write_bytes(b"no picture")
    assert picture_size(path) is None
    assert picture_size(np.zeros((0, 3, 3), np.uint8)) is None
    thin = picture(1, 300, seed=0)  # the processor refuses it
    counts = TokenCounter(embedder[0]).count([path, thin, "."]).counts
    assert (counts < 100).all()


def test_packed_batches_are_not_too_wide_to_pool():
    counts = np.array([8_000, *[8] * 4_000])
    assert all(len(batch) * counts[batch].max() <= 4 * 16_384 for batch in plan(counts, 16_384, packed=True))


def padding_of(counts, batches):
    return 1 - counts.sum() / sum(len(batch) * counts[batch].max() for batch in batches)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("budget", [1, 100, 2_000, 10**6])
def test_every_item_is_in_one_batch_that_keeps_to_the_budget(budget, packed):
    counts = np.random.default_rng(0).integers(1, 400, 1_000)
    batches = plan(counts, budget, packed=packed)
    assert sorted(np.concatenate(batches).tolist()) == list(range(1_000))
    for batch in batches:
        held = counts[batch].sum() if packed else len(batch) * counts[batch].max()
        assert held <= budget or len(batch) == 1
    starts = [counts[batch[0]] for batch in batches]
    assert starts == sorted(starts, reverse=True)


def test_padding_is_at_most_a_twentieth():
    counts = np.random.default_rng(0).geometric(0.01, 10_000)
    batches = plan(counts, 16_384)
    full = [batch for batch in batches if len(batch) * counts[batch].max() > 16_384 / SMALL]
    assert full and all(padding_of(counts[batch], [np.arange(len(batch))]) <= PADDING for batch in full)
    assert padding_of(counts, batches) <= PADDING


def test_a_few_short_items_are_one_batch():
    assert len(plan(np.array([9, 30, 14, 22]), 2_048)) == 1
    assert plan(np.array([], dtype=np.int64), 2_048) == []
