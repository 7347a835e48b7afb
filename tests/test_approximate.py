"""Approximate indexes: what FAISS proposes is scored exactly, and what it misses is measured."""

import shutil

import faiss
import numpy as np
import pytest

from umarvel_hf.approximate import ApproximateIndex, build_approximate
from umarvel_hf.corpus import encode_corpus, open_corpus, read_corpus


class Spread:
    """An encoder of texts that are numbers: unit vectors drawn by their number."""

    def encode(self, inputs, *, prompt=None, show_progress_bar=None):
        drawn = np.stack([np.random.default_rng(int(one)).standard_normal(16) for one in inputs]).astype(np.float32)
        return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    root = tmp_path_factory.mktemp("vectors")
    lines = [f'{{"id": "n{number}", "text": "{number}"}}\n' for number in range(700)]
    (root / "items.jsonl").write_text("".join(lines))
    encode_corpus(Spread(), read_corpus(root / "items.jsonl"), root / "store", model="spread")
    return root / "store"


@pytest.mark.parametrize("factory", ["Flat", "HNSW16", "IVF8,SQ8"])
def test_hits_have_exact_scores_and_recall_is_that_of_a_full_product(vectors, tmp_path, factory):
    report = build_approximate(vectors, tmp_path / "index", factory=factory)
    index, store = ApproximateIndex.open(tmp_path / "index"), open_corpus(vectors).store
    stored = store.take(np.arange(len(store)))
    queries = Spread().encode(range(700, 720))
    found = index.search(queries, k=10)
    scores = queries.astype(np.float64) @ stored.T.astype(np.float64)
    places = {name.decode(): at for at, name in enumerate(store.ids)}
    shares = []
    for row, hits in zip(scores, found, strict=True):
        best = {store.ids[at].decode() for at in np.argsort(-row)[:10]}
        shares.append(len(best & {hit.id for hit in hits}) / 10)
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
        assert all(abs(hit.score - row[places[hit.id]]) < 1e-6 for hit in hits)
    assert (report.count, report.sampled, report.factory) == (700, 500, factory)
    assert report.bytes == (tmp_path / "index/index.faiss").stat().st_size
    if factory == "Flat":
        assert report.recall_at_10 == 1.0 and np.mean(shares) == 1.0
    assert abs(report.recall_at_10 - np.mean(shares)) < 0.5


def test_a_coarse_index_is_reported_as_such_and_looks_into_more_than_one_list(vectors, tmp_path):
    coarse = build_approximate(vectors, tmp_path / "coarse", factory="IVF64,Flat")
    assert coarse.recall_at_10 < 0.9
    stored = faiss.read_index(str(tmp_path / "coarse/index.faiss"))
    assert faiss.extract_index_ivf(stored).nprobe == 8


def test_an_index_of_vectors_that_were_made_anew_is_refused(tmp_path):
    (tmp_path / "items.csv").write_text("text\n1\n2\n3\n")
    corpus = read_corpus(tmp_path / "items.csv")
    encode_corpus(Spread(), corpus, tmp_path / "store", model="spread")
    build_approximate(tmp_path / "store", tmp_path / "index", factory="Flat")
    shutil.rmtree(tmp_path / "store")

    class Other(Spread):
        def encode(self, inputs, **kwargs):
            return -super().encode(inputs, **kwargs)

    encode_corpus(Other(), corpus, tmp_path / "store", model="other")
    with pytest.raises(ValueError, match=r"index was made of other vectors than .*store holds now \(checksum "):
        ApproximateIndex.open(tmp_path / "index")


def test_what_faiss_cannot_build_is_refused(vectors, tmp_path):
    with pytest.raises(ValueError, match=r"FAISS cannot make an index 'Banana' of 700 vectors \("):
        build_approximate(vectors, tmp_path / "index", factory="Banana")
    with pytest.raises(ValueError, match=r"FAISS cannot make an index 'IVF4096,Flat' of 700 vectors \("):
        build_approximate(vectors, tmp_path / "index", factory="IVF4096,Flat")
    with pytest.raises(ValueError, match=r"FAISS cannot make an index 'IDMap,Flat' of 700 vectors \("):
        build_approximate(vectors, tmp_path / "index", factory="IDMap,Flat")
    with pytest.raises(FileNotFoundError, match="holds no index; make one: `umarvel index VECTORS"):
        ApproximateIndex.open(tmp_path)


def test_an_index_of_another_store_is_refused(vectors, tmp_path):
    build_approximate(vectors, tmp_path / "index", factory="Flat")
    with pytest.raises(ValueError, match="k is 0; it must be at least 1"):
        ApproximateIndex.open(tmp_path / "index").search(Spread().encode([1]), k=0)
    (tmp_path / "other.jsonl").write_text('{"text": "1"}\n')
    encode_corpus(Spread(), read_corpus(tmp_path / "other.jsonl"), tmp_path / "other", model="spread")
    facts = tmp_path / "index/index.json"
    facts.write_text(facts.read_text().replace(str(vectors), str(tmp_path / "other")))
    with pytest.raises(ValueError, match="was made of other vectors than"):
        ApproximateIndex.open(tmp_path / "index")
    index = faiss.IndexFlatIP(16)
    index.add(Spread().encode([1, 2]))
    with pytest.raises(ValueError, match="the index has 2 vectors of 16 dimensions, its store 1 of 16"):
        ApproximateIndex(index, open_corpus(tmp_path / "other"))
