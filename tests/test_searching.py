"""The journeys of a search: all ways to what is searched find the same, and a re-ranker judges what was found."""

import json

import numpy as np
import pytest

from pictures import picture
from umarvel_hf.approximate import build_approximate
from umarvel_hf.checkpoint import new_model
from umarvel_hf.reranker_checkpoint import new_reranker
from umarvel_hf.searching import encode_collection, rerank, search


@pytest.fixture(scope="module")
def pictures_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("searched")
    for at in range(6):
        picture(56, 56, seed=20 + at).save(folder / f"{at}.png")
    return folder


@pytest.fixture(scope="module")
def vectors(checkpoint, pictures_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("store") / "vectors"
    encode_collection(pictures_folder, out, model=checkpoint, device=["cpu"])
    return out


def test_a_folder_its_store_and_its_index_are_searched_alike(checkpoint, pictures_folder, vectors, tmp_path):
    build_approximate(vectors, tmp_path / "index", factory="Flat")
    for query in (
        {"text": "a dog"},
        {"image": pictures_folder / "3.png"},
        {"text": "a", "image": pictures_folder / "3.png"},
    ):
        here = search(**query, images=pictures_folder, model=checkpoint, device="cpu", k=4)
        assert search(**query, index=vectors, device="cpu", k=4) == here
        assert search(**query, index=tmp_path / "index", device="cpu", k=4) == here
    assert len(search("a", index=vectors, k=99, device="cpu")) == 6


def test_the_instruction_is_the_checkpoints_own_for_query_and_items(checkpoint, vectors, embedder):
    own = embedder.prompts["text-to-image"]
    assert search("a dog", index=vectors, device="cpu") == search("a dog", index=vectors, instruction=own, device="cpu")
    other = search("a dog", index=vectors, instruction="Find another.", device="cpu")
    assert [one.score for one in other] != [one.score for one in search("a dog", index=vectors, device="cpu")]


def test_what_was_encoded_is_searched_from_another_folder_too(checkpoint, pictures_folder, tmp_path, monkeypatch):
    (tmp_path / "my-embedder").symlink_to(checkpoint)
    monkeypatch.chdir(tmp_path)
    encode_collection(pictures_folder, "vectors", model="my-embedder", device=["cpu"])
    found = search("a dog", index="vectors", k=2, device="cpu")
    monkeypatch.chdir(tmp_path.parent)
    assert search("a dog", index=tmp_path / "vectors", k=2, device="cpu") == found
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(pictures_folder.parent)
    (here,) = search("a dog", images=pictures_folder.name, model=checkpoint, k=1, device="cpu")
    assert here.facts()["image"].startswith(str(pictures_folder))


def test_a_store_is_not_searched_with_another_model(bases, vectors, tmp_path):
    other = new_model(bases("qwen3_vl"), tmp_path / "other")
    with pytest.raises(ValueError, match="holds other vectors than those asked for"):
        search("a dog", index=vectors, model=other, device="cpu")


def test_a_search_that_makes_no_sense_is_refused(vectors, pictures_folder, tmp_path):
    with pytest.raises(ValueError, match="there is nothing to search for"):
        search(index=vectors)
    with pytest.raises(ValueError, match=r"both an index .* and images to encode"):
        search("a", index=vectors, images=pictures_folder)
    with pytest.raises(FileNotFoundError, match="holds nothing to search; fill it first: `umarvel encode ITEMS"):
        search("a", index=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"the file 'gone\.png' does not exist"):
        search(image="gone.png", index=vectors)
    with pytest.raises(ValueError, match="k is 0"):
        search("a", index=vectors, k=0)


def test_a_reranker_judges_a_folder_a_store_and_what_was_found(bases, vectors, pictures_folder, tmp_path):
    model = new_reranker(bases("qwen2_vl"), tmp_path / "reranker")
    judged = rerank(model, pictures_folder, "a dog", k=99)
    assert len(judged) == 6 and all(0 <= one.score <= 1 for one in judged)
    assert [one.score for one in judged] == sorted((one.score for one in judged), reverse=True)
    by_store = rerank(model, vectors, "a dog", k=99)
    assert [one.id for one in by_store] == [one.id for one in judged]
    np.testing.assert_allclose([one.score for one in by_store], [one.score for one in judged], atol=1e-6)
    found = search("a dog", index=vectors, k=3, device="cpu")
    (tmp_path / "found.json").write_text(json.dumps({"found": [one.facts() for one in found]}))
    of_found = rerank(model, tmp_path / "found.json", "a dog", k=99)
    assert {one.id for one in of_found} == {one.id for one in found}
    assert [one.id for one in of_found] == [one.id for one in judged if one.id in {hit.id for hit in found}]
    with pytest.raises(ValueError, match="there is nothing to judge by"):
        rerank(model, pictures_folder)
    with pytest.raises(ValueError, match="k is 0"):
        rerank(model, pictures_folder, "a", k=0)
