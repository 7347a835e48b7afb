"""Collections: read from folders and tables, encoded so that a run can be broken off, what is unreadable set aside."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from pictures import picture
from umarvel_hf.corpus import encode_corpus, open_corpus, read_corpus
from umarvel_hf.fingerprint import fingerprint


@pytest.fixture
def folder(tmp_path):
    """Three pictures, one of them deeper, and a file that is none."""
    root = tmp_path / "pictures"
    (root / "deeper").mkdir(parents=True)
    for at, name in enumerate(("b.png", "a.JPG", "deeper/c.webp")):
        picture(56, 56, seed=at).save(root / name)
    (root / "notes.txt").write_text("nothing")
    return root


def test_a_folder_gives_its_pictures_under_their_paths(folder):
    corpus = read_corpus(folder)
    assert dict(corpus.items) == {name: {"image": folder / name} for name in ("a.JPG", "b.png", "deeper/c.webp")}


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_a_table_gives_texts_pictures_and_both(folder, kind):
    from datasets import Dataset

    rows = [
        {"id": "x", "text": "a dog", "image": None},
        {"id": "y", "text": None, "image": "b.png"},
        {"id": "z", "text": "a cat", "image": "deeper/c.webp"},
    ]
    table, path = Dataset.from_list(rows), folder / f"items.{kind}"
    {"jsonl": table.to_json, "csv": table.to_csv, "parquet": table.to_parquet}[kind](str(path))
    assert dict(read_corpus(path).items) == {
        "x": "a dog",
        "y": {"image": folder / "b.png"},
        "z": {"image": folder / "deeper/c.webp", "text": "a cat"},
    }


def test_values_of_a_table_stay_as_they_are_written(tmp_path):
    (tmp_path / "a[1].CSV").write_text("id,text\n007,null\n008,2024-01-01\n", encoding="utf-8-sig")
    assert dict(read_corpus(tmp_path / "a[1].CSV").items) == {"007": "null", "008": "2024-01-01"}
    (tmp_path / "a.jsonl").write_text(
        '{"id": "2024-01-01", "text": "été"}\n\n{"id": 7, "text": "7"}\n', encoding="utf-8"
    )
    assert dict(read_corpus(tmp_path / "a.jsonl").items) == {"2024-01-01": "été", "7": "7"}


def test_rows_without_ids_are_numbered(tmp_path):
    (tmp_path / "texts.csv").write_text("text\na dog\na cat\n")
    assert dict(read_corpus(tmp_path / "texts.csv").items) == {"0": "a dog", "1": "a cat"}


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.csv", "id,text\nx,a\nx,b\n", "a.csv, row 1: id 'x' occurs twice"),
        ("a.csv", "id,caption\nx,a\n", "a.csv, row 0: neither text nor image; its columns are id, caption"),
        ("a.jsonl", '{"text": 7}', "a.jsonl, row 0: text is a int; give a string"),
        ("a.jsonl", '{"text": "a"}\n{"text":', "a.jsonl is not a whole jsonl table"),
        ("a.jsonl", "[1]", "a.jsonl is not a whole jsonl table (a row is a list, not an object)"),
        ("a.jsonl", "", "a.jsonl holds no rows"),
        (
            "a.csv",
            "text\na dog, a cat\n",
            "a.csv is not a whole csv table (row 0 has more fields than there are columns)",
        ),
        ("a.parquet", "no parquet", "a.parquet is not a whole parquet table"),
        (
            "a.json",
            '{"found": [1]}',
            "a.json is not what `umarvel search --json` prints (a row is a int, not an object)",
        ),
        ("a.xlsx", "", "a.xlsx is no table that can be read; give a folder, or one of .jsonl, .csv, .parquet"),
        ("a.json", "[]", "a.json is not what `umarvel search --json` prints"),
        ("a.json", '{"found": []}', "a.json holds no rows"),
    ],
)
def test_a_table_that_is_wrong_is_refused_by_row(tmp_path, name, content, told):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=re.escape(told)):
        read_corpus(tmp_path / name)


def test_nothing_to_read_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"holds no picture \(\.png"):
        read_corpus(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="does not exist; give a folder of pictures or a table"):
        read_corpus(tmp_path / "nothing")


def test_what_is_encoded_is_found_again_and_what_is_damaged_is_listed(embedder, folder, tmp_path):
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    corpus = read_corpus(folder)
    done = encode_corpus(embedder, corpus, tmp_path / "out", model="here")
    assert done.left_out == 1 and list(done.items) == ["a.JPG", "b.png", "deeper/c.webp"]
    (left,) = map(json.loads, (tmp_path / "out/quarantine.jsonl").read_text().splitlines())
    assert left["id"] == "broken.png" and "is not a picture that Pillow can read" in left["reason"]
    expected = embedder.encode([{"image": folder / name} for name in done.items])
    opened = open_corpus(tmp_path / "out", made_by=fingerprint(embedder))
    np.testing.assert_allclose(opened.store.take(np.arange(3)), expected, rtol=0, atol=1e-3)
    assert opened.items == {name: {"image": folder / name} for name in done.items}
    assert (opened.model, opened.left_out) == ("here", 1)
    with pytest.raises(ValueError, match=r"weights was .* and is 0"):
        open_corpus(tmp_path / "out", made_by=fingerprint(embedder) | {"weights": "0"})


def test_a_picture_too_narrow_for_the_processor_is_listed_and_does_not_end_the_encoding(embedder, folder, tmp_path):
    Image.new("RGB", (900, 4)).save(folder / "narrow.png")
    done = encode_corpus(embedder, read_corpus(folder), tmp_path / "out", model="here")
    assert list(done.items) == ["a.JPG", "b.png", "deeper/c.webp"]
    (left,) = map(json.loads, (tmp_path / "out/quarantine.jsonl").read_text().splitlines())
    assert left["id"] == "narrow.png" and "is 900 × 4 pixels; processors refuse what is over 200" in left["reason"]


def test_a_broken_encoding_goes_on(embedder, folder, tmp_path, monkeypatch):
    corpus = read_corpus(folder)
    monkeypatch.setattr("umarvel_hf.store.SHARD_ROWS", 1)
    monkeypatch.setattr("umarvel_hf.search.SHARD_ROWS", 1)
    encoded = encode_corpus(embedder, corpus, tmp_path / "out", model="m").store
    monkeypatch.setattr("umarvel_hf.search.embed", lambda *_, **__: pytest.fail("encoded again"))
    again = encode_corpus(embedder, corpus, tmp_path / "out", model="m").store
    assert np.array_equal(again.take(np.arange(3)), encoded.take(np.arange(3)))
    Image.new("RGB", (9, 9)).save(folder / "new.png")
    with pytest.raises(ValueError, match="count was 3 and is 4"):
        encode_corpus(embedder, read_corpus(folder), tmp_path / "out", model="m")


def test_a_folder_of_which_nothing_can_be_read_is_refused(embedder, tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/x.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"none of the 1 items of .*bad can be read, 'x\.png' the first: "):
        encode_corpus(embedder, read_corpus(tmp_path / "bad"), tmp_path / "out", model="m")
    assert not (tmp_path / "out").exists()


def test_a_store_of_something_else_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no store of items; make one of them: `umarvel encode ITEMS"):
        open_corpus(tmp_path)
