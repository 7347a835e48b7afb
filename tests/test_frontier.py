"""Smaller vectors and pictures: quality as by brute force, costs as FAISS counts them, the processor left alone."""

import dataclasses

import numpy as np
import pytest

import umarvel_hf.evaluation.frontier as frontier
from colours import ColourEncoder, write_benchmark, write_lines
from mbeir import write_mbeir
from umarvel_hf.data import MBeir
from umarvel_hf.evaluation.benchmark import evaluate_benchmark
from umarvel_hf.evaluation.frontier import (
    FrontierPoint,
    frontier_table,
    halves,
    image_pixels,
    load_frontier,
    measure_frontier,
    pareto,
    save_frontier,
)
from umarvel_hf.evaluation.results import MODEL


@pytest.fixture(scope="module")
def mbeir(tmp_path_factory):
    root = tmp_path_factory.mktemp("mbeir")
    return write_mbeir(root), MBeir(root)


@pytest.fixture(scope="module")
def points(mbeir):
    found = measure_frontier(*mbeir, suite="m-beir", dimensions=(16, 12, 5))
    return {(point.precision, point.dimension): point for point in found}


def test_whole_vectors_in_float32_give_the_means_of_the_evaluation(mbeir, points):
    result = evaluate_benchmark(*mbeir, suite="m-beir")
    for pool in ("local", "union"):
        assert getattr(points["float32", 16], pool) == pytest.approx(result.mean("M-BEIR", MODEL, pool), abs=1e-12)


def scored(precision, dimension, queries, candidates):
    """(Q, C), from whole vectors; ``int8`` has 256 steps between the extremes of each number."""
    if dimension < queries.shape[1]:
        queries, candidates = (
            one[:, :dimension] / np.linalg.norm(one[:, :dimension], axis=1, keepdims=True)
            for one in (queries, candidates)
        )
    if precision == "binary":
        return -((queries[:, None] > 0) != (candidates[None] > 0)).sum(axis=2)
    if precision == "int8":
        low, high = candidates.min(axis=0), candidates.max(axis=0)
        queries, candidates = (
            low + (np.floor(255 * np.clip((one - low) / (high - low), 0, 1)) + 0.5) / 255 * (high - low)
            for one in (queries, candidates)
        )
    return (queries @ candidates.T).round(6)


def test_every_dimension_and_precision_gives_the_hit_rate_of_brute_force(mbeir, points):
    known, data = mbeir
    hits = {key: {"local": [], "union": []} for key in points}
    for task in data.tasks():
        queries, qrels = data.queries(task), data.qrels(task)
        modality = data.pool(task)[queries[0].positives[0]].modality
        asked = known.encode([one.item for one in queries], prompt=data.prompts(queries[0], modality)[0])
        k = 10 if task.dataset in ("fashion200k", "fashioniq") else 5
        for name, pool in (("local", data.pool(task)), ("union", data.union_pool())):
            dids = np.array(sorted(pool, reverse=True))  # of equal scores the higher id comes first
            vectors = known.encode([pool[did].item for did in dids])
            halved = [one.astype(np.float16).astype(np.float32) for one in (asked, vectors)]
            for key in points:
                order = np.argsort(-scored(*key, *halved), axis=1, kind="stable")[:, :k]
                found = zip(queries, order, strict=True)
                hits[key][name].append(np.mean([not qrels[one.qid].keys().isdisjoint(dids[at]) for one, at in found]))
    for key, point in points.items():
        assert point.local == pytest.approx(np.mean(hits[key]["local"]), abs=1e-3), key
        assert point.union == pytest.approx(np.mean(hits[key]["union"]), abs=1e-3), key


def test_fewer_numbers_and_bits_cost_quality_and_take_as_many_bytes_as_faiss_says(points):
    sizes = {key: point.bytes_per_vector for key, point in points.items()}
    assert [sizes["float32", 16], sizes["int8", 16], sizes["binary", 16]] == [64, 16, 2]
    assert [sizes["float32", 5], sizes["int8", 5], sizes["binary", 5]] == [20, 5, 1]
    assert points["float32", 16].union > points["float32", 12].union > points["float32", 5].union
    assert points["float32", 16].union > points["binary", 16].union > points["binary", 5].union
    assert all(point.encode_ms > 0 and point.search_ms > 0 for point in points.values())


class Tied:
    """Every item but one has the same vector."""

    def encode(self, inputs, **_):
        return np.array([(1, 0) if one == "odd" else (0, 1) for one in inputs], dtype=np.float32)


@pytest.mark.parametrize("precision", ["float32", "int8", "binary"])
def test_a_tie_beyond_the_fiftieth_place_is_decided_by_the_id(tmp_path, precision):
    candidates = [
        {"did": f"1:{at:03}", "txt": "odd" if at == 0 else f"text {at}", "img_path": None, "modality": "text"}
        for at in range(300)
    ]
    rows = [
        {"qid": f"1:{name}", "query_txt": "q", "query_img_path": None, "query_modality": "text"}
        | {"pos_cand_list": [did], "neg_cand_list": [], "task_id": 1}
        for name, did in (("high", "1:295"), ("low", "1:294"))
    ]
    write_lines(tmp_path / "cand_pool/local/mbeir_tied_task1_cand_pool.jsonl", candidates)
    write_lines(tmp_path / "query/test/mbeir_tied_task1_test.jsonl", rows)
    qrels = [f"{row['qid']} 0 {row['pos_cand_list'][0]} 1 1" for row in rows]
    write_lines(tmp_path / "qrels/test/mbeir_tied_task1_test_qrels.txt", qrels)
    header = "query_modality\tcand_modality\tname\tdataset_id\tprompt_1"
    write_lines(tmp_path / "instructions/query_instructions.tsv", [header, "text\ttext\ttied\t1\tFind it."])
    (point,) = measure_frontier(Tied(), MBeir(tmp_path), precisions=[precision])
    assert (point.local, point.union) == (0.5, 0.5)  # 295 to 299 are the first five


def test_vectors_in_a_folder_are_those_of_the_evaluation_and_are_not_made_twice(tmp_path):
    data, encoder = MBeir(write_benchmark(tmp_path / "data")), ColourEncoder()
    result = evaluate_benchmark(encoder, data, vectors=tmp_path / "vectors", baselines=False)
    encoder.calls.clear()
    (point,) = measure_frontier(encoder, data, precisions=["float32"], vectors=tmp_path / "vectors")
    assert sum(len(items) for _, items in encoder.calls) == 18  # those that were timed
    assert point.dimension == 3 and point.max_pixels is None
    assert point.local == pytest.approx(np.mean([task.rate(MODEL, "local") for task in result.tasks]))


def test_pictures_are_encoded_anew_under_every_limit(tmp_path, embedder):
    data = MBeir(write_benchmark(tmp_path / "data"))
    settings = {"precisions": ["int8"], "dimensions": [32], "vectors": tmp_path / "vectors"}
    own = embedder[0].processor.image_processor.size
    points = measure_frontier(embedder, data, max_pixels=[784, 4704], **settings)
    assert [point.max_pixels for point in points] == [784, own.longest_edge] == [784, 4704]
    assert len(list((tmp_path / "vectors/pixels-784").glob("*/manifest.json"))) == 6
    assert embedder[0].processor.image_processor.size == own
    (again,) = measure_frontier(embedder, data, **settings)
    assert dataclasses.replace(again, encode_ms=0, search_ms=0) == dataclasses.replace(
        points[1], encode_ms=0, search_ms=0
    )


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl"])
def test_a_limit_shrinks_pictures_and_is_lifted_also_after_an_error(embedders, pictures, family):
    embedder = embedders(family)
    size = embedder[0].processor.image_processor.size
    before = embedder.preprocess([pictures[0]])["pixel_values"].shape
    with image_pixels(embedder, size.shortest_edge) as (own, limit):
        assert (own, limit) == (size.longest_edge, size.shortest_edge)
        assert embedder.preprocess([pictures[0]])["pixel_values"].shape < before
    with pytest.raises(RuntimeError, match="cut short"), image_pixels(embedder, size.shortest_edge):
        raise RuntimeError("cut short")
    assert embedder[0].processor.image_processor.size == size
    assert embedder.preprocess([pictures[0]])["pixel_values"].shape == before


def test_limits_that_a_processor_cannot_keep_are_refused(embedders):
    with pytest.raises(ValueError, match=r"max_pixels is 100, below the 784 pixels.*Give at least 784"):
        image_pixels(embedders("qwen2_vl"), 100).__enter__()
    with pytest.raises(ValueError, match=r"SmolVLMImageProcessor has no limit of pixels"):
        image_pixels(embedders("smolvlm"), 100).__enter__()
    with pytest.raises(ValueError, match=r"ColourEncoder has no limit of pixels"):
        image_pixels(ColourEncoder(), 100).__enter__()


def test_what_cannot_be_measured_is_refused(mbeir):
    with pytest.raises(ValueError, match=r"'int4' is none of float32, int8, binary"):
        measure_frontier(*mbeir, precisions=["int4"])
    with pytest.raises(ValueError, match=r"dimension 17 is asked for; this model's vectors have 1 to 16"):
        measure_frontier(*mbeir, dimensions=[17])
    with pytest.raises(
        ValueError, match=r"640 vectors in float32 with 16 numbers takes 40,960 bytes, memory is 40,000"
    ):
        measure_frontier(*mbeir, memory=40_000)


def test_little_memory_changes_nothing(mbeir, points, monkeypatch):
    monkeypatch.setattr(frontier, "ROWS", 7)
    found = measure_frontier(*mbeir, suite="m-beir", dimensions=[12], memory=31_000)
    for one in found:
        whole = points[one.precision, 12]
        assert (one.local, one.union) == (whole.local, whole.union)


def test_dimensions_are_halved_down_to_sixteen():
    assert halves(1536) == [1536, 768, 384, 192, 96, 48, 24]
    assert halves(64) == [64, 32, 16]
    assert halves(20) == [20]


def point(size, union, precision="int8"):
    return FrontierPoint(precision, size, None, size, 0.5, union, 1.0, 0.1)


def test_the_frontier_holds_what_no_other_beats(tmp_path):
    best = [point(1, 0.2), point(4, 0.5), point(8, 0.9)]
    twin = dataclasses.replace(best[1], precision="binary")
    beaten = [point(4, 0.4), point(5, 0.5), point(9, 0.9)]
    assert pareto([*beaten, *best[::-1], twin]) == [best[0], best[1], twin, best[2]]
    assert pareto([*best, *beaten], "local") == best[:1]
    save_frontier([*best, beaten[0]], tmp_path / "frontier.json")
    assert load_frontier(tmp_path) == load_frontier(tmp_path / "frontier.json") == [*best, beaten[0]]
    lines = frontier_table([*best, beaten[0]]).splitlines()
    assert [line.endswith("*") for line in lines[1:5]] == [True, True, True, False]
    (tmp_path / "other.json").write_text('{"format": 9}')
    with pytest.raises(ValueError, match=r"other\.json holds no frontier \(format 9, not 1\)"):
        load_frontier(tmp_path / "other.json")
