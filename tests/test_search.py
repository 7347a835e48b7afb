"""The search over a store, and what fills one."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from colours import COLOURS, ColourEncoder
from umarvel_hf.index import FlatIndex
from umarvel_hf.search import (
    QUERIES,
    Ranking,
    Search,
    best_first,
    embed,
    encode_store,
    inputs_digest,
    search_store,
    top_k,
)
from umarvel_hf.store import StoreChain, VectorStore
from vectors import unit_rows


def test_top_k_breaks_ties_by_position():
    scores = np.array([[1, 3, 3, 2, 3], [0, 0, 0, 0, 0], [5, 4, 3, 2, 1]], dtype=np.float32)
    assert top_k(scores, 2).tolist() == [[1, 2], [0, 1], [0, 1]]
    assert top_k(scores, 9).tolist() == [[1, 2, 4, 3, 0], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]


def test_top_k_equals_a_full_sort():
    scores = np.random.default_rng(0).integers(0, 20, size=(30, 200)).astype(np.float32)
    full = np.argsort(-scores, axis=1, kind="stable")
    assert (top_k(scores, 7) == full[:, :7]).all()


class Returns:
    def __init__(self, value):
        self.value = value

    def encode(self, inputs, **_):
        return self.value


def test_an_encoder_that_breaks_its_promise_is_refused():
    with pytest.raises(ValueError, match=r"Returns.encode returned an array of shape \(1, 8\) for 2 items"):
        embed(Returns(unit_rows(1)), ["a", "b"])
    with pytest.raises(ValueError, match="Normalise them in the encoder"):
        embed(Returns(3 * unit_rows(2)), ["a", "b"])


def brute_force(ids, vectors, queries, positions, k):
    """(position, millionths) of the k best of each query: double precision, plain sorting."""
    ids = [one.decode() for one in ids]
    scores = queries.astype(np.float64) @ vectors.astype(np.float64).T
    return [
        [
            (at, millionths)
            for millionths, _, at in sorted((round(1e6 * row[at]), ids[at], at) for at in positions)[::-1]
        ][:k]
        for row in scores
    ]


def assert_same(ranking, expected, k):
    assert ranking.positions.shape == ranking.scores.shape == (len(expected), k)
    assert ranking.positions.dtype == np.int64 and ranking.scores.dtype == np.float32
    for positions, scores, row in zip(ranking.positions, ranking.scores, expected, strict=True):
        assert positions.tolist() == [at for at, _ in row] + [-1] * (k - len(row))
        assert scores[: len(row)] == pytest.approx([millionths / 1e6 for _, millionths in row], abs=1e-7)
        assert (scores[len(row) :] == -np.inf).all()


def normalised(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def better_and_better(count):
    angles = np.linspace(1.5, 0.1, count, dtype=np.float32)
    return np.stack([np.cos(angles), np.sin(angles), *np.zeros((6, count), np.float32)], axis=1)


COUNT = 700
KINDS = {
    "all different": unit_rows(COUNT, seed=1),
    "each many times": unit_rows(9, seed=1)[np.random.default_rng(0).integers(0, 9, COUNT)],
    "all the same": np.repeat(unit_rows(1, seed=1), COUNT, axis=0),
    "hardly different": normalised(unit_rows(1, seed=1) + 2e-3 * unit_rows(COUNT, seed=2)),
    "better and better": better_and_better(COUNT),
}


@pytest.fixture(params=KINDS)
def store(request, tmp_path):
    """Vectors of every kind, under ids in no order, in shards smaller than a block."""
    ids = [f"d{at}" for at in np.random.default_rng(3).permutation(COUNT)]
    return VectorStore.write(tmp_path / "store", ids, KINDS[request.param], made_by={}, shard_rows=300)


@pytest.mark.parametrize("k", [1, 7, 50, 1000])
def test_one_pass_finds_what_brute_force_finds(store, k):
    vectors = store.take(np.arange(COUNT))
    first = np.eye(8, dtype=np.float32)[:1]
    spread = np.sort(np.random.default_rng(6).choice(COUNT, 90, replace=False))
    pools = {
        "all": None,
        "run": np.arange(290, 400),
        "spread": spread,
        "one": np.array([699]),
        "none": np.array([], dtype=np.int64),
    }
    many = np.concatenate([first, vectors[:3], unit_rows(26, seed=4)]).astype(np.float16)
    searches = {
        "many": Search(many, pools),
        "few": Search(unit_rows(3, seed=5), {"all": None, "spread": spread}),
        "no queries": Search(unit_rows(3)[:0], {"all": None}),
    }
    rankings = search_store(store, searches, k=k, memory=10**9)
    for name, search in searches.items():
        assert list(rankings[name]) == list(search.pools)
        for pool, positions in search.pools.items():
            positions = range(COUNT) if positions is None else positions.tolist()
            assert_same(rankings[name][pool], brute_force(store.ids, vectors, search.queries, positions, k), k)


def least_memory(store, searches, k):
    """As the refusal of none says."""
    with pytest.raises(ValueError, match="memory is 0 bytes, but") as caught:
        search_store(store, searches, k=k, memory=0)
    return int(str(caught.value).split("need at least ")[1].split(".")[0].replace(",", ""))


def test_blocks_of_any_size_find_the_same(store):
    queries = np.concatenate([store.take(np.array([0, 5])), unit_rows(298, seed=4)])  # many of the smallest blocks
    searches = {"it": Search(queries, {"all": None, "odd": np.arange(1, COUNT, 2)})}
    most = search_store(store, searches, k=20, memory=10**9)["it"]
    least = least_memory(store, searches, 20)
    for memory in (least, least + 100_000, least + 500_000):
        found = search_store(store, searches, k=20, memory=memory)["it"]
        for pool in most:
            assert (found[pool].positions == most[pool].positions).all()
            assert (found[pool].scores == most[pool].scores).all()
    with pytest.raises(ValueError, match=rf"memory is {least - 1:,} bytes, but 600 rankings .* at least {least:,}\."):
        search_store(store, searches, k=20, memory=least - 1)


def test_more_queries_than_a_block_find_what_each_finds_alone(store):
    few = np.concatenate([store.take(np.array([0, 5])), unit_rows(20, seed=4)])
    many = np.resize(few, (QUERIES + 30, 8))
    found = [search_store(store, {"": Search(each, {"": None})}, k=3, memory=10**9)[""][""] for each in (few, many)]
    assert (found[1].positions == np.resize(found[0].positions, (len(many), 3))).all()
    assert (found[1].scores == np.resize(found[0].scores, (len(many), 3))).all()


def test_a_query_of_many_ties_among_queries_of_none(tmp_path):
    """One half of the store is the same vector, which all but one query keep away from."""
    same, others = np.repeat(unit_rows(1), 500, axis=0), unit_rows(500, seed=1)
    vectors = np.stack([same, others], axis=1).reshape(1000, 8)
    store = VectorStore.write(tmp_path, [f"d{at}" for at in range(1000)], vectors, made_by={}, shard_rows=130)
    queries = np.concatenate([-same[:20], same[:1], -same[:11]])
    found = search_store(store, {"it": Search(queries, {"all": None})}, k=4, memory=10**9)["it"]["all"]
    expected = brute_force(store.ids, store.take(np.arange(1000)), queries, range(1000), 4)
    assert [at for at, _ in expected[20]] == sorted(range(0, 1000, 2), key=lambda at: f"d{at}")[:-5:-1]
    assert_same(found, expected, 4)


class Watched(StoreChain):
    """Notes how precise products are while it is read."""

    def blocks(self, rows):
        for block in super().blocks(rows):
            self.precision = torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision
            yield block


@pytest.fixture
def set_precision():
    kinds = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    before = [kind.fp32_precision for kind in kinds]

    def set_all(*precisions):
        for kind, precision in zip(kinds, precisions, strict=True):
            kind.fp32_precision = precision

    yield set_all
    set_all(*before)


def test_the_search_is_as_exact_where_training_is_not(store, set_precision):
    searches = {"it": Search(unit_rows(9, seed=4), {"all": None})}
    usual = search_store(store, searches, k=20, memory=10**9)["it"]["all"]
    set_precision("tf32", "bf16")
    watched = Watched([store])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = search_store(watched, searches, k=20, memory=10**9)["it"]["all"]
    assert watched.precision == ("ieee", "ieee")
    assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
    assert (found.positions == usual.positions).all() and (found.scores == usual.scores).all()


def test_queries_may_be_mapped_from_a_file(store, tmp_path):
    queries = unit_rows(9, seed=4)
    np.save(tmp_path / "queries.npy", queries)
    mapped = np.load(tmp_path / "queries.npy", mmap_mode="r")
    ours, theirs = (
        search_store(store, {"it": Search(each, {"all": None})}, k=5, memory=10**9)["it"]["all"]
        for each in (queries, mapped)
    )
    assert (ours.positions == theirs.positions).all()


def test_the_index_agrees_with_the_store(store):
    queries = np.concatenate([store.take(np.array([0, 5])), unit_rows(30, seed=4)])
    ranking = search_store(store, {"it": Search(queries, {"all": None})}, k=12, memory=10**9)["it"]["all"]
    names = [[store.ids[at].decode() for at in row] for row in ranking.positions]
    for index in (FlatIndex.from_store(store), FlatIndex.open(store.folder)):
        assert [[hit.id for hit in hits] for hits in index.search(queries, k=12)] == names


def test_a_chain_of_stores_is_searched_as_one(store, tmp_path):
    other = VectorStore.write(tmp_path / "other", ["d3", "d1000"], unit_rows(2, seed=9), made_by={})
    queries = unit_rows(4, seed=4)
    pools = {"first": np.arange(COUNT), "last": np.array([COUNT, COUNT + 1])}
    found = search_store(StoreChain([store, other]), {"it": Search(queries, pools)}, k=5, memory=10**9)["it"]
    alone = search_store(store, {"it": Search(queries, {"all": None})}, k=5, memory=10**9)["it"]["all"]
    assert (found["first"].positions == alone.positions).all()
    assert set(found["last"].positions.ravel()) == {-1, COUNT, COUNT + 1}


@pytest.mark.parametrize(
    ("search", "k", "message"),
    [
        (Search(unit_rows(2), {"all": None}), 0, "k is 0"),
        (Search(unit_rows(2, dimension=4), {"all": None}), 5, r"search 'it' has queries of shape \(2, 4\)"),
        (Search(unit_rows(2)[0], {"all": None}), 5, r"shape \(8,\)"),
        (Search(2 * unit_rows(2), {"all": None}), 5, "length 2. They are queries of search 'it'"),
        (Search(unit_rows(2), {"p": np.array([3, 2])}), 5, "pool 'p' of search 'it' must hold sorted positions"),
        (Search(unit_rows(2), {"p": np.array([2, 2])}), 5, "each once"),
        (Search(unit_rows(2), {"p": np.array([-1, 2])}), 5, "sorted positions"),
        (Search(unit_rows(2), {"p": np.array([2, 700])}), 5, "below 700"),
    ],
)
def test_a_search_that_makes_no_sense_is_refused(tmp_path, search, k, message):
    store = VectorStore.write(tmp_path, [str(at) for at in range(COUNT)], unit_rows(COUNT), made_by={})
    with pytest.raises(ValueError, match=message):
        search_store(store, {"it": search}, k=k, memory=10**9)


def test_changed_scores_are_sorted_anew():
    ids = np.array([b"a", b"c", b"b"])
    positions = np.array([[0, 1, 2, -1], [2, 0, -1, -1]])
    scores = np.array([[0.5, 0.5000001, 0.5, -np.inf], [0.1, 0.2, -np.inf, -np.inf]], dtype=np.float32)
    ranking = best_first(Ranking(positions, scores), ids)
    assert ranking.positions.tolist() == [[1, 2, 0, -1], [0, 2, -1, -1]]
    assert ranking.scores[0, :3].tolist() == [0.5] * 3 and ranking.scores[1, 2] == -np.inf


@pytest.fixture
def pictures(tmp_path):
    (tmp_path / "data").mkdir()
    for name, rgb in COLOURS.items():
        Image.new("RGB", (4, 4), rgb).save(tmp_path / f"data/{name}.png")
    return [{"image": path} for path in sorted((tmp_path / "data").iterdir())]


def colour_store(folder, encoder, pictures, **changes):
    items = ["red", *pictures, "blue sky", "green"]
    instructions = ["find", None, "show", "show", "find", None, "find", "show", "find"]
    settings = {"instructions": instructions, "made_by": {"encoder": "colours"}, "shard_rows": 4}
    return encode_store(encoder, folder, [f"d{at}" for at in range(9)], items, **{**settings, **changes})


def test_items_are_encoded_a_shard_at_a_time_each_with_its_instruction(tmp_path, pictures):
    encoder = ColourEncoder()
    store = colour_store(tmp_path / "store", encoder, pictures)
    calls = [(prompt, len(items)) for prompt, items in encoder.calls]
    assert calls == [("find", 1), (None, 1), ("show", 2), ("find", 2), (None, 1), ("show", 1), ("find", 1)]
    expected = ColourEncoder().encode(["red", *pictures, "blue sky", "green"])
    assert (store.take(np.arange(9)) == expected.astype(np.float16)).all()
    colour_store(tmp_path / "store", encoder, pictures)
    assert len(encoder.calls) == 7


def test_other_items_or_instructions_are_refused_and_a_folder_may_move(tmp_path, pictures):
    root, folder, encoder = tmp_path / "data", tmp_path / "store", ColourEncoder()
    colour_store(folder, ColourEncoder(), pictures, root=root)
    with pytest.raises(ValueError, match="shard 0, holds other vectors"):
        colour_store(folder, encoder, [*pictures[1:], pictures[0]], root=root)
    with pytest.raises(ValueError, match="shard 0, holds other vectors"):
        colour_store(folder, encoder, pictures, root=root, instructions="show")
    shutil.copytree(root, tmp_path / "moved")
    moved = [{"image": tmp_path / "moved" / one["image"].name} for one in pictures]
    colour_store(folder, encoder, moved, root=tmp_path / "moved")
    (tmp_path / "moved" / pictures[0]["image"].name).write_bytes(b"another picture")
    with pytest.raises(ValueError, match="shard 0, holds other vectors"):
        colour_store(folder, encoder, moved, root=tmp_path / "moved")
    assert encoder.calls == []
    with pytest.raises(ValueError, match="9 ids, 9 items and 2 instructions"):
        colour_store(folder, encoder, pictures, instructions=["a", "b"])


def test_a_digest_tells_inputs_apart():
    red, blue = Image.new("RGB", (2, 2), "red"), Image.new("RGB", (2, 2), "blue")
    items = [
        "a",
        Path("a"),
        {"text": "a"},
        {"image": "a"},
        {"image": Path("a")},
        red,
        blue,
        np.asarray(red),
        [red, "a"],
    ]
    digests = {inputs_digest(["d"], [item]) for item in items}
    digests |= {inputs_digest(["e"], ["a"]), inputs_digest(["d"], ["a"], ["find"])}
    assert len(digests) == len(items) + 2
    assert inputs_digest(["d"], [red]) == inputs_digest(np.array([b"d"]), [red.copy()])
    with pytest.raises(TypeError, match="items cannot hold a set"):
        inputs_digest(["d"], [{"a"}])


MILLION = """
import resource, sys
import numpy as np
from umarvel_hf.search import Search, search_store
from umarvel_hf.store import VectorStore, fill_store

def encode(rows):
    vectors = np.random.default_rng(rows.start).normal(size=(rows.stop - rows.start, 256)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

folder, count, k = sys.argv[1], 1_000_000, 50
fill_store(folder, [f"{at % 10}:{at}" for at in range(count)], encode, made_by={}, digest=str)
store = VectorStore.open(folder)
queries, local = encode(slice(1, 301)), np.arange(100_000, 900_000, 7)
rankings = search_store(store, {"it": Search(queries, {"union": None, "local": local})}, k=k, memory=10**9)["it"]
peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for query in (0, 150, 299):
    exact = np.concatenate([block.astype(np.float64) @ queries[query] for _, block in store.blocks(50_000)])
    millionths = np.rint(1e6 * exact).astype(int)
    for pool, positions in (("union", np.arange(count)), ("local", local)):
        best = positions[np.lexsort((store.ids[positions], millionths[positions]))[::-1][:k]]
        assert (rankings[pool].positions[query] == best).all()
print(peak)
"""


@pytest.mark.slow
def test_a_million_vectors_are_searched_in_bounded_memory(tmp_path):
    done = subprocess.run([sys.executable, "-c", MILLION, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    print(f"peak {int(done.stdout) / 1e9:.2f} GB")
    assert int(done.stdout) < 2e9
