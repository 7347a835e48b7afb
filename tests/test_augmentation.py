"""Changes to training pictures: small, never mirrored, the same for the same draw."""

import numpy as np
import pytest
import torch
from PIL import Image

from umarvel_hf.messages import chat
from umarvel_hf.trainer.augmentation import Augmentation

SETTINGS = {"shift": 0.05, "scale": 0.1, "colour": 0.3, "greyscale": 0.1}
UNCHANGED = {"shift": 0.0, "scale": 0.0, "colour": 0.0, "greyscale": 0.0}


def asymmetric(width=96, height=64):
    """White, with one black square in the upper left."""
    pixels = np.full((height, width, 3), 255, dtype=np.uint8)
    pixels[8:24, 8:24] = 0
    return Image.fromarray(pixels)


@pytest.fixture
def message(tmp_path):
    """A chat of a picture and a text."""
    asymmetric().save(tmp_path / "picture.png")
    return chat({"image": str(tmp_path / "picture.png"), "text": "left."}, "Find it.")


def changed(message, count, **settings):
    """``count`` changed pictures of the chat."""
    augmentation = Augmentation(**SETTINGS | settings)
    return [augmentation(message, str(draw))[1]["content"][0]["image"] for draw in range(count)]


def test_a_changed_picture_keeps_its_size_and_its_sides(message):
    pictures = changed(message, 100)
    assert {picture.size for picture in pictures} == {(96, 64)}
    for picture in pictures:
        dark = np.argwhere(np.asarray(picture.convert("L")) < 100)  # (N, 2): row, column
        assert len(dark) > 100
        assert (dark.mean(axis=0) < (32, 48)).all()  # still in the upper left quarter


def test_most_pictures_change_and_none_is_lost(message):
    pixels = np.stack([np.asarray(picture) for picture in changed(message, 20)])
    assert len(np.unique(pixels, axis=0)) > 15
    unchanged = [np.asarray(picture) for picture in changed(message, 3, **UNCHANGED)]
    assert all(np.array_equal(picture, np.asarray(asymmetric())) for picture in unchanged)


def test_what_is_shifted_in_is_white(message):
    pixels = np.stack([np.asarray(picture) for picture in changed(message, 50, colour=0.0)])
    assert (pixels[:, [0, -1]] > 250).all() and (pixels[:, :, [0, -1]] > 250).all()


def test_texts_instructions_and_the_chat_itself_stay_as_they_are(message):
    before = [{**one, "content": list(one["content"])} for one in message]
    after = Augmentation(**SETTINGS)(message, "0")
    assert message == before
    assert after[0] == message[0] and after[1]["role"] == "user" and after[1]["content"][1] == message[1]["content"][1]
    words = chat("a text", "Find it.")
    assert Augmentation(**SETTINGS)(words, "0") == words


def test_a_change_follows_from_its_draw_alone(message):
    first = np.asarray(changed(message, 1)[0])
    torch.manual_seed(1234)
    again = [np.asarray(picture) for picture in changed(message, 2)]
    assert np.array_equal(again[0], first) and not np.array_equal(again[1], first)
    opened = [{**message[1], "content": [{"type": "image", "image": asymmetric()}]}]  # not from its file
    assert np.array_equal(np.asarray(Augmentation(**SETTINGS)(opened, "0")[0]["content"][0]["image"]), first)


def test_torchs_own_random_state_is_left_alone(message):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    changed(message, 3)
    assert torch.equal(torch.rand(3), expected)
