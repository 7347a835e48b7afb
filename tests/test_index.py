"""The flat index and the search over it."""

import json

import numpy as np
import pytest
from PIL import Image

from colours import COLOURS, ColourEncoder
from umarvel_hf.index import FlatIndex, Hit, build_index, retrieve
from umarvel_hf.search import top_k
from umarvel_hf.store import VectorStore
from vectors import unit_rows


@pytest.fixture
def index():
    index = FlatIndex(8)
    index.add([f"d{at}" for at in range(50)], unit_rows(50))
    return index


def test_search_finds_what_a_full_product_finds(index):
    queries = unit_rows(25, seed=1)
    scores = queries @ unit_rows(50).astype(np.float16).T  # as an index holds them
    found = index.search(queries, k=5)
    assert [[hit.id for hit in hits] for hits in found] == [[f"d{at}" for at in row] for row in top_k(scores, 5)]
    assert found[3][0].score == pytest.approx(scores[3].max(), abs=1e-6)


@pytest.mark.parametrize("queries", [1, 40])
def test_ties_are_broken_by_id_also_beyond_k(queries):
    index = FlatIndex(2)
    same, other = np.array([[1, 0]] * 30, dtype=np.float32), np.array([[0, 1]], dtype=np.float32)
    index.add([f"{30 - at:02d}" for at in range(30)], same)  # the ids run against the order of adding
    index.add(["00"], other)
    found = index.search(np.repeat(same[:1], queries, axis=0), k=3)
    assert [hit.id for hit in found[-1]] == ["30", "29", "28"]


def test_k_beyond_the_index_returns_all(index):
    assert len(index.search(unit_rows(2), k=500)[0]) == 50
    assert FlatIndex(8).search(unit_rows(2), k=3) == [[], []]


def test_saved_and_opened_is_the_same_index(index, tmp_path):
    index.save(tmp_path / "index")
    opened = FlatIndex.open(tmp_path / "index")
    assert opened.ids == index.ids
    assert opened.search(unit_rows(5, seed=2)) == index.search(unit_rows(5, seed=2))
    opened.add(["new"], unit_rows(1, seed=3))
    with pytest.raises(ValueError, match="'d7' is already among the 51"):
        opened.add(["d7"], unit_rows(1))
    manifest = json.loads((tmp_path / "index/manifest.json").read_text())
    assert (manifest["dimension"], manifest["count"]) == (8, 50)


def test_saving_again_replaces_the_index_and_leaves_no_old_file(index, tmp_path):
    index.save(tmp_path)
    index.add(["new"], unit_rows(1, seed=3))
    index.save(tmp_path)
    assert len(FlatIndex.open(tmp_path)) == 51
    assert sorted(path.suffix for path in tmp_path.iterdir() if path.suffix) == [".json", ".npy", ".npy"]
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    index.save(tmp_path)
    assert first == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_a_save_that_breaks_off_leaves_the_old_index(index, tmp_path, monkeypatch):
    index.save(tmp_path)
    index.add(["new"], unit_rows(1, seed=3))
    monkeypatch.setattr("umarvel_hf.store.json.dumps", disk_full)
    with pytest.raises(OSError, match="disk full"):
        index.save(tmp_path)
    assert len(FlatIndex.open(tmp_path)) == 50


def disk_full(*_, **__):
    raise OSError("disk full")


@pytest.mark.parametrize(
    ("ids", "embeddings", "message"),
    [
        (["a"], unit_rows(1, dimension=4), r"shape \(1, 4\); the index takes \(N, 8\)"),
        (["a"], unit_rows(1)[0], r"shape \(8,\)"),
        (["a", "b"], unit_rows(1), "2 ids for 1 embeddings"),
        (["a", "a"], unit_rows(2), "'a' occurs twice"),
        (["d3"], unit_rows(1), "'d3' is already among the 50"),
        (["a", "b"], np.concatenate([unit_rows(1), 2 * unit_rows(1)]), "number 1 with length 2"),
        (["a"], unit_rows(1) * np.nan, "number 0 with length nan"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_added(index, ids, embeddings, message):
    with pytest.raises(ValueError, match=message):
        index.add(ids, embeddings)
    assert len(index) == 50
    assert len(index.search(unit_rows(1), k=99)[0]) == 50


def test_other_types_than_float32_are_refused(index):
    with pytest.raises(TypeError, match="embeddings are float64"):
        index.add(["a"], unit_rows(1).astype(np.float64))
    with pytest.raises(TypeError, match="embeddings are list"):
        index.search([[1.0] * 8])
    with pytest.raises(ValueError, match="k is 0"):
        index.search(unit_rows(1), k=0)


def test_a_damaged_index_is_refused(index, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"manifest.json does not exist. Pass a folder"):
        FlatIndex.open(tmp_path)
    index.save(tmp_path)
    vectors = next(tmp_path.glob("vectors-*.npy"))
    vectors.write_bytes(vectors.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"\.npy has sha256 .* says"):
        FlatIndex.open(tmp_path)


def test_a_search_finds_the_picture_a_text_describes(tmp_path):
    encoder = ColourEncoder()
    for name, rgb in COLOURS.items():
        Image.new("RGB", (4, 4), rgb).save(tmp_path / f"{name}.png")
    paths = sorted(tmp_path.iterdir())
    index = build_index(encoder, [path.stem for path in paths], [{"image": path} for path in paths])
    hits = retrieve(encoder, index, "a blue square", instruction="Find it.", k=2)
    assert hits[0] == Hit("blue", pytest.approx(1.0, abs=1e-3))
    assert len(hits) == 2
    assert encoder.calls[-1] == ("Find it.", ["a blue square"])


def test_an_empty_index_is_not_built():
    with pytest.raises(ValueError, match="nothing to index"):
        build_index(ColourEncoder(), [], [])


def test_an_index_knows_what_made_it(index, tmp_path):
    index.save(tmp_path, made_by={"weights": "abc"})
    assert FlatIndex.open(tmp_path, made_by={"weights": "abc"}).ids == index.ids
    with pytest.raises(ValueError, match="weights was abc and is xyz"):
        FlatIndex.open(tmp_path, made_by={"weights": "xyz"})


def test_an_index_of_a_part_of_a_store_searches_that_part(index, tmp_path):
    index.save(tmp_path)
    part = FlatIndex.from_store(VectorStore.open(tmp_path), np.array([3, 40, 8]))
    assert part.ids == ("d3", "d40", "d8")
    queries = unit_rows(4, seed=5)
    expected = [[hit for hit in hits if hit.id in part.ids] for hits in index.search(queries, k=50)]
    assert part.search(queries, k=50) == expected
