"""Changes to training pictures: small, never mirrored, the same for the same seed, epoch and row."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from colours import write_benchmark, write_training_split
from umarvel_hf.data import MBeir
from umarvel_hf.trainer.augmentation import Augmentation
from umarvel_hf.trainer.rows import mbeir_rows

SETTINGS = {"shift": 0.05, "scale": 0.1, "colour": 0.3, "greyscale": 0.1}
UNCHANGED = {"shift": 0.0, "scale": 0.0, "colour": 0.0, "greyscale": 0.0}


def asymmetric(width=96, height=64):
    """White, with one black square in the upper left."""
    pixels = np.full((height, width, 3), 255, dtype=np.uint8)
    pixels[8:24, 8:24] = 0
    return Image.fromarray(pixels)


def rows_of(path, count):
    """``count`` rows whose query is the picture with a text and whose positive is the picture."""
    parts = [{"type": "image", "image": str(path), "text": None}, {"type": "text", "image": None, "text": "left."}]
    return {
        "anchor": [[{"role": "user", "content": parts}] for _ in range(count)],
        "positive": [[{"role": "user", "content": parts[:1]}] for _ in range(count)],
        "label": [[number, 0] for number in range(count)],
    }


def pictures(rows, column="anchor"):
    return [chat[0]["content"][0]["image"] for chat in rows[column]]


def pixels(rows, column="anchor"):
    return np.stack([np.asarray(picture) for picture in pictures(rows, column)])


@pytest.fixture
def path(tmp_path):
    asymmetric().save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def test_a_changed_picture_keeps_its_size_and_its_sides(path):
    changed = pictures(Augmentation(**SETTINGS, seed=0)(rows_of(path, 100)))
    assert {picture.size for picture in changed} == {(96, 64)}
    for picture in changed:
        dark = np.argwhere(np.asarray(picture.convert("L")) < 100)  # (N, 2): row, column
        assert len(dark) > 100
        assert (dark.mean(axis=0) < (32, 48)).all()  # still in the upper left quarter


def test_most_pictures_change_and_none_is_lost(path):
    changed = pixels(Augmentation(**SETTINGS, seed=0)(rows_of(path, 20)))
    assert len(np.unique(changed, axis=0)) > 15
    original = np.asarray(asymmetric())
    unchanged = pixels(Augmentation(**UNCHANGED, seed=0)(rows_of(path, 3)))
    assert all(np.array_equal(picture, original) for picture in unchanged)


def test_what_is_shifted_in_is_white(path):
    changed = pixels(Augmentation(**SETTINGS | {"colour": 0.0}, seed=0)(rows_of(path, 50)))
    assert (changed[:, [0, -1]] > 250).all() and (changed[:, :, [0, -1]] > 250).all()


def test_texts_labels_and_paths_stay_as_they_are(path):
    rows = rows_of(path, 3)
    changed = Augmentation(**SETTINGS, seed=0)(rows)
    assert rows == rows_of(path, 3)
    assert changed["label"] == rows["label"]
    assert [chat[0]["role"] for chat in changed["anchor"]] == 3 * ["user"]
    assert all(chat[0]["content"][1] == rows["anchor"][0][0]["content"][1] for chat in changed["anchor"])


def test_a_change_follows_from_seed_epoch_and_row_alone(path):
    augmentation = Augmentation(**SETTINGS, seed=0)
    first = pixels(augmentation(rows_of(path, 8)))
    torch.manual_seed(1234)
    assert np.array_equal(pixels(augmentation(rows_of(path, 8))), first)
    assert np.array_equal(pixels(augmentation(rows_of(path, 3))), first[:3])
    assert not np.array_equal(pixels(augmentation(rows_of(path, 8)), "positive"), first)
    assert not np.array_equal(pixels(Augmentation(**SETTINGS, seed=1)(rows_of(path, 8))), first)
    augmentation.on_epoch_begin(None, SimpleNamespace(epoch=1.75), None)
    assert not np.array_equal(pixels(augmentation(rows_of(path, 8))), first)
    augmentation.on_epoch_begin(None, SimpleNamespace(epoch=0.5), None)
    assert np.array_equal(pixels(augmentation(rows_of(path, 8))), first)


def test_workers_that_would_never_learn_the_epoch_are_refused():
    augmentation = Augmentation(**SETTINGS, seed=0)
    augmentation.on_train_begin(SimpleNamespace(dataloader_persistent_workers=False), None, None)
    with pytest.raises(ValueError, match="dataloader_persistent_workers is True"):
        augmentation.on_train_begin(SimpleNamespace(dataloader_persistent_workers=True), None, None)


def test_torchs_own_random_state_is_left_alone(path):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    Augmentation(**SETTINGS, seed=0)(rows_of(path, 3))
    assert torch.equal(torch.rand(3), expected)


def test_a_data_set_shows_changed_pictures_and_learns_the_epoch(tmp_path):
    rows, _ = mbeir_rows(MBeir(write_training_split(write_benchmark(tmp_path / "data"))), seed=0)
    augmentation = Augmentation(**SETTINGS, seed=0)
    shown = rows.with_transform(augmentation)
    assert shown[0]["anchor"] == rows[0]["anchor"]  # a text
    assert shown[0]["label"] == rows[0]["label"]
    before = shown[12]["anchor"][1]["content"][0]["image"]
    assert isinstance(before, Image.Image) and before.size == (12, 12)
    augmentation.on_epoch_begin(None, SimpleNamespace(epoch=1.0), None)
    after = shown[12]["anchor"][1]["content"][0]["image"]
    assert not np.array_equal(np.asarray(before), np.asarray(after))
