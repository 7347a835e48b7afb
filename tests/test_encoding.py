"""``umarvel_hf.encode``: the host's vectors, one for each item in order, and errors that count from the start."""

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from weakref import WeakKeyDictionary

import numpy as np
import pytest
import torch
from PIL import Image

from pictures import picture
from umarvel_hf import encoding
from umarvel_hf.encoding import _Encoding, can_encode, encode, fastest_dtype, load
from umarvel_hf.fingerprint import fingerprint
from umarvel_hf.modeling.messages_umarvel import ItemError
from umarvel_hf.modeling.modeling_umarvel import PROMPTS

INSTRUCTION = "Find an image that matches the given text."


def close(left, right, atol=1e-5):
    np.testing.assert_allclose(np.asarray(left), np.asarray(right), rtol=0, atol=atol)


@pytest.fixture(scope="module")
def items(pictures):
    """Of many lengths, so that the host's order of batches is not the caller's."""
    chat = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image", "image": pictures[1]}]}]
    words = [f"{'a dog ' * (at * 7 % 11)}{at}" for at in range(9)]
    return [words[0], pictures[0], *words[1:4], {"image": pictures[:2], "text": "two"}, *words[4:], chat]


@pytest.mark.parametrize(("packed", "threads"), [(False, 1), (False, 4), (True, 4)])
def test_vectors_are_those_of_the_host_in_the_order_of_the_items(embedder, monkeypatch, items, packed, threads):
    monkeypatch.setattr(encoding, "can_pack", lambda _: packed)  # as on a GPU
    monkeypatch.setattr(encoding, "_threads_for", lambda _: threads)
    vectors = encode(embedder, items, prompt=INSTRUCTION, batch_tokens=120)
    assert vectors.shape == (len(items), 32) and vectors.dtype == np.float32
    alone = np.concatenate([embedder.encode([item], prompt=INSTRUCTION) for item in items])
    close(vectors, alone)
    assert np.triu(alone @ alone.T, 1).max() < 0.99999


@pytest.mark.parametrize("batch_tokens", [1, 60, 150, 10_000])
def test_the_size_of_a_batch_never_changes_a_vector(embedder, items, batch_tokens):
    close(encode(embedder, items, batch_tokens=batch_tokens), encode(embedder, items))


def test_no_items_give_no_vectors(embedder):
    vectors = encode(embedder, [])
    assert vectors.shape == (0, 32) and vectors.dtype == np.float32


@pytest.mark.parametrize("kind", [list, tuple])
def test_one_item_gives_one_row(embedder, kind):
    assert encode(embedder, kind(["a dog"])).shape == (1, 32)


def test_a_model_may_be_named_by_its_folder(checkpoint, embedder):
    expected = encode(embedder, ["a dog"])
    close(encode(str(checkpoint), ["a dog"]), expected)
    close(encode(checkpoint, ["a dog"]), expected)
    close(load(checkpoint).encode(["a dog"]), expected)


def test_messages_in_a_list_are_items_of_their_own(embedder):
    message = {"role": "user", "content": "a dog"}
    both = encode(embedder, [message, {"role": "user", "content": "a bench"}])
    close(both, encode(embedder, ["a dog", "a bench"]))
    close(encode(embedder, ["a dog", message]), encode(embedder, ["a dog", "a dog"]))


@pytest.mark.parametrize(
    "items",
    [
        "a dog",
        {"text": "a dog"},
        {"a dog"},
        3,
        iter(["a dog"]),
        picture(8, 8, seed=0),
        np.zeros((4, 8, 8, 3), np.uint8),
    ],
    ids=lambda items: type(items).__name__,
)
def test_what_is_no_list_is_refused(embedder, items):
    with pytest.raises(TypeError, match="give a list of items, also for a single one"):
        encode(embedder, items)


def broken_picture(tmp_path):
    path = tmp_path / "broken.png"
    picture(60, 60, seed=0).save(path)
    path.write_bytes(path.read_bytes()[:1500])
    return path


BAD = {
    "whitespace": (lambda _: "  ", "it is empty"),
    "an unknown key": (lambda _: {"txt": "a"}, "unknown key 'txt'"),
    "a wrong type": (lambda _: 3.5, "a float is not an item"),
    "a missing file": (lambda tmp: tmp / "gone.png", "does not exist"),
    "a folder": (lambda tmp: {"image": tmp}, "is a folder"),
    "a truncated picture": (broken_picture, "is damaged"),
    "a URL": (lambda _: {"image": "https://example.org/a.png"}, "is a URL"),
    "a picture of no size": (lambda _: np.zeros((0, 3, 3), np.uint8), "holds nothing"),
    "a message": (lambda _: {"role": "user", "content": [{"type": "image", "image": 3}]}, "a picture cannot be a int"),
    "a broken video": (lambda tmp: {"video": broken_picture(tmp)}, "is no video that can be read"),
}


@pytest.mark.parametrize("at", [0, 7, 12])
@pytest.mark.parametrize("name", BAD)
def test_a_bad_item_is_named_by_its_place_in_the_callers_list(embedder, items, tmp_path, name, at):
    make, message = BAD[name]
    bad = make(tmp_path)
    given = [*items[:at], bad, *items[at:]]
    with pytest.raises(ItemError, match=rf"^Item {at} \(.*{message}") as caught:
        encode(embedder, given, batch_tokens=100)
    assert caught.value.index == at
    assert caught.value.item is bad or caught.value.item == [bad]


def test_texts_are_not_held_up_by_pictures_that_take_long(embedder, monkeypatch, pictures):
    texts_are_done, usual = threading.Event(), embedder[0].preprocess

    def slow(items, **kwargs):
        assert texts_are_done.wait(timeout=30)
        return usual(items, **kwargs)

    embed = _Encoding._embed

    def watched(self, features):
        vectors = embed(self, features)
        if "pixel_values" not in features:
            texts_are_done.set()
        return vectors

    monkeypatch.setattr(embedder[0], "preprocess", slow)
    monkeypatch.setattr(_Encoding, "_embed", watched)
    close(encode(embedder, [*pictures, "a dog"], batch_tokens=1)[3:], embedder.encode(["a dog"]))


def test_threads_of_a_caller_encode_one_after_the_other(embedder, items):
    expected, threads = encode(embedder, items), torch.get_num_threads()
    with ThreadPoolExecutor(3) as pool:
        for found in pool.map(lambda _: encode(embedder, items, batch_tokens=100), range(6)):
            close(found, expected)
    assert torch.get_num_threads() == threads
    assert not any("forward" in vars(module) for module in embedder[0].model.vlm.modules())


def test_an_item_is_found_in_what_was_given_whoever_calls(embedder, pictures):
    class Wrapped:
        def encode(self, inputs):
            return encode(embedder, inputs[1:])

    with pytest.raises(ItemError, match=r"^Item 1 .*a picture of mode 'F'") as caught:
        Wrapped().encode(["a", pictures[0], pictures[1].convert("F")])
    assert caught.value.index == 1


def test_a_picture_of_several_batches_is_read_from_its_file_by_one_thread(embedder, monkeypatch, tmp_path):
    picture(1500, 1000, seed=0).save(tmp_path / "large.jpg")
    monkeypatch.setattr(encoding, "_threads_for", lambda _: 4)
    with Image.open(tmp_path / "large.jpg") as opened:
        vectors = encode(embedder, [opened] * 12 + ["a dog"], batch_tokens=1)
    close(vectors[:12], np.tile(vectors[:1], (12, 1)))


def test_threads_have_processors_of_their_own_but_for_the_tokenizer(embedder, pictures):
    module = embedder[0]
    for_a_thread = encoding._for_a_thread(module)
    assert for_a_thread.processor.image_processor is not module.processor.image_processor
    assert isinstance(for_a_thread.processor.tokenizer, type(module.processor.tokenizer))
    assert for_a_thread.processor.tokenizer._tokenizer is module.processor.tokenizer._tokenizer
    given = [pictures[0], "a dog"]
    expected, found = module.preprocess(given), for_a_thread.preprocess(given)
    assert torch.equal(found["input_ids"], expected["input_ids"])


def test_what_is_spread_over_devices_is_left_to_its_hooks(checkpoint):
    spread = load(checkpoint)
    assert can_encode(spread)
    norm = spread[0].model.vlm.get_decoder().norm
    norm.weight = torch.nn.Parameter(norm.weight.to("meta"))
    assert not can_encode(spread)


def test_where_memory_does_not_suffice_batches_are_halved(embedder, monkeypatch, items, caplog):
    embed = _Encoding._embed

    def tight(self, features):
        rows, tokens = features["input_ids"].shape
        if rows > 1 and rows * tokens > 100:
            raise torch.OutOfMemoryError("full")
        return embed(self, features)

    expected = encode(embedder, items)
    monkeypatch.setattr(encoding, "_suffices", WeakKeyDictionary())
    monkeypatch.setattr(_Encoding, "_embed", tight)
    close(encode(embedder, items, batch_tokens=1_000), expected)
    assert "now with batch_tokens=500" in caplog.text and "now with batch_tokens=125" in caplog.text
    caplog.clear()
    close(encode(embedder, items, batch_tokens=1_000), expected)  # which is remembered
    assert not caplog.text
    monkeypatch.setattr(_Encoding, "_embed", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("full")))
    with pytest.raises(torch.OutOfMemoryError):
        encode(embedder, items)


@pytest.mark.parametrize("family", ["smolvlm", "llava_onevision"])
def test_films_that_cannot_share_a_batch_are_encoded_one_at_a_time(embedders, frames, pictures, family):
    embedder = embedders(family)
    films = [{"video": frames}, {"video": frames[:2]}, {"video": frames, "text": "a film"}, pictures[0]]
    close(encode(embedder, films), np.concatenate([embedder.encode([one]) for one in films]))


def test_vectors_are_cut_as_the_model_says(checkpoint):
    short = load(checkpoint, truncate_dim=8)
    close(encode(short, ["a dog"]), short.encode(["a dog"]))
    assert encode(short, ["a dog"]).shape == (1, 8)


def test_the_type_is_the_checkpoints_unless_told(checkpoint, monkeypatch):
    assert load(checkpoint).dtype == torch.float32
    assert load(checkpoint, dtype="bfloat16").dtype == torch.bfloat16
    for seconds, expected in ((1.0, torch.float32), (0.3, torch.bfloat16)):
        monkeypatch.setattr(
            encoding, "_seconds_of_a_product", lambda dtype, s=seconds: s if dtype == torch.bfloat16 else 1.0
        )
        assert fastest_dtype("cpu") == expected
        assert load(checkpoint, dtype="auto", device="cpu").dtype == expected


def test_half_precision_gives_the_vectors_of_the_host(checkpoint, items):
    half = load(checkpoint, dtype="bfloat16")
    ours, theirs = encode(half, items), half.encode(items)
    assert (ours * theirs).sum(axis=1).min() > 0.9999


@pytest.mark.parametrize("batch_tokens", [0, -5])
def test_a_batch_needs_a_token(embedder, batch_tokens):
    with pytest.raises(ValueError, match=rf"batch_tokens is {batch_tokens}; give at least 1"):
        encode(embedder, ["a dog"], batch_tokens=batch_tokens)


def test_an_unknown_instruction_is_refused(embedder):
    with pytest.raises(ValueError, match=r"prompt_name is 'nothing', but the checkpoint holds 'query'"):
        encode(embedder, ["a dog"], prompt_name="nothing")


def test_other_errors_pass_as_they_are(embedder, monkeypatch, pictures):
    def failing(*args, **kwargs):
        raise ValueError("no such picture")

    monkeypatch.setattr(embedder[0], "preprocess", failing)
    with pytest.raises(ValueError, match=r"^no such picture$"):
        encode(embedder, pictures)


def test_an_item_that_is_bad_twice_is_named_once_at_its_first_place(embedder):
    with pytest.raises(ItemError, match=r"^Item 1 "):
        encode(embedder, ["a dog", "", "a bench", ""])


def test_the_callers_list_is_left_alone(embedder):
    items = [{"role": "user", "content": "a dog"}, "a bench"]
    before = [dict(items[0]), items[1]]
    encode(embedder, items)
    assert items == before


def test_an_array_of_texts_is_a_list_of_them(embedder):
    close(encode(embedder, np.array(["a dog", "a cat"])), encode(embedder, ["a dog", "a cat"]))


def test_an_instruction_can_be_named(embedder):
    named = encode(embedder, ["a dog"], prompt_name="text-to-image")
    close(named, encode(embedder, ["a dog"], prompt=PROMPTS["text-to-image"]))


def differences(one, other):
    return {name for name in {*one, *other} if one.get(name) != other.get(name)}


@pytest.mark.parametrize("family", ["qwen2_vl", "smolvlm"])
def test_a_copy_elsewhere_has_the_same_fingerprint(checkpoints, embedders, tmp_path, family):
    shutil.copytree(checkpoints(family), tmp_path / "copy")
    stored = fingerprint(embedders(family))
    copy = load(tmp_path / "copy")
    assert fingerprint(copy) == stored
    copy.encode(["a dog", "a dog on a bench"])
    assert fingerprint(copy) == stored
    assert {"weights", "code", "settings", "dtype", "attention", "image limits", "transformers"} <= set(stored)
    assert all(isinstance(value, str) for value in stored.values())


def test_whatever_shapes_a_vector_changes_the_fingerprint(checkpoint, embedder):
    stored = fingerprint(embedder)

    def changed(change):
        model = load(checkpoint)
        change(model)
        return differences(stored, fingerprint(model))

    def move_one_weight(model):
        with torch.no_grad():
            next(model.parameters()).view(-1)[0] += 1e-3

    def more_pixels(model):
        model[0].processor.image_processor.size = {"shortest_edge": 784, "longest_edge": 9408}

    assert changed(move_one_weight) == {"weights"}
    assert changed(more_pixels) == {"settings", "image limits"}
    assert changed(lambda model: setattr(model[0].processor, "chat_template", "{{ messages }}")) == {"settings"}
    assert changed(lambda model: setattr(model, "default_prompt_name", "text-to-image")) == {"settings"}
    assert changed(lambda model: setattr(model[0].model.config, "pooling", "last")) == {"settings"}
    half = fingerprint(load(checkpoint, model_kwargs={"dtype": torch.bfloat16}))
    assert differences(stored, half) == {"weights", "dtype"}
    eager = fingerprint(load(checkpoint, model_kwargs={"attn_implementation": "eager"}))
    assert differences(stored, eager) == {"attention"}


def test_other_code_in_the_checkpoint_has_another_fingerprint(checkpoint, embedder, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "copy")
    with (tmp_path / "copy/messages_umarvel.py").open("a") as file:
        file.write("# changed\n")
    assert differences(fingerprint(embedder), fingerprint(load(tmp_path / "copy"))) == {"code"}


def test_of_another_encoder_the_class_is_known():
    class Fake:
        pass

    assert fingerprint(Fake()) == {"encoder": f"{Fake.__module__}.{Fake.__qualname__}"}
