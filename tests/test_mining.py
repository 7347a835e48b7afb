"""Mining: what a brute-force search finds less the answers, the same however it is cut, stopped or shared."""

import os
import random
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

import mine_on_ranks
from foreign import WARNINGS_ARE_ERRORS
from mbeir import DrawnVectors, content
from mine_on_ranks import MADE_BY, write_training_split
from umarvel_hf.data import CANDIDATE_MODALITY, MODALITIES, MBeir, Task
from umarvel_hf.mining import Candidates, Queries, mine, mine_benchmark, show_lists
from umarvel_hf.search import encode_store, search_store
from vectors import unit_rows

DEPTH, SEED = 20, 4


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_training_split(tmp_path_factory.mktemp("mbeir"))


@pytest.fixture(scope="module")
def benchmark(root):
    return MBeir(root)


@pytest.fixture(scope="module")
def mined(benchmark, tmp_path_factory):
    """Tables of all queries in both pools, their folder, and the encoder."""
    out, encoder = tmp_path_factory.mktemp("mined"), DrawnVectors()
    return mine_benchmark(encoder, benchmark, out, depth=DEPTH, seed=SEED, made_by=MADE_BY), out, encoder


def rows_of(table):
    return [
        (one.qid, one.positives, one.positive_scores.tolist(), one.dids, one.scores.tolist(), one.answers)
        for one in table
    ]


def half(rows):
    return rows.astype(np.float16).astype(np.float64)


@pytest.fixture(scope="module")
def known(benchmark):
    """Every training candidate and its vector as it is stored."""
    candidates = list(benchmark.union_pool("train").values())
    return list(zip(candidates, half(DrawnVectors().encode([one.item for one in candidates])), strict=True))


def expected(benchmark, known, query, pool):
    """Positives and negatives of a query, best first, and the scores of all candidates, by definition."""
    draw = random.Random(f"{SEED}-{query.qid}")
    modality = benchmark.union_pool("train")[draw.choice(query.positives)].modality
    instruction = draw.choice(benchmark.prompts(query, modality))
    vector = half(DrawnVectors().encode([query.item], prompt=instruction))[0]
    scores = {one.did: round(float(row @ vector), 6) for one, row in known}
    own = query.qid.split(":")[0]
    datasets = {"5", "6"} if own in ("5", "6") else {own}
    answers = [content(one.item) for one, _ in known if one.did in query.positives]
    negatives = [
        one.did
        for one, _ in known
        if content(one.item) not in answers
        and (pool == "union" or one.modality == CANDIDATE_MODALITY[query.task_id])
        and (pool == "union" or one.did.split(":")[0] in datasets)
    ]
    ordered = [sorted(dids, key=lambda did: (scores[did], did), reverse=True) for dids in (query.positives, negatives)]
    return ordered[0], ordered[1][:DEPTH], scores


@pytest.mark.parametrize("pool", ["local", "union"])
def test_a_mined_list_is_what_brute_force_finds(benchmark, known, mined, pool):
    table = mined[0][pool]
    queries = {query.qid: query for query in benchmark.train_queries()}
    assert sorted(table.qids) == sorted(queries)  # each once, although some rows are repeated
    for qid in list(queries)[::5]:
        positives, negatives, scores = expected(benchmark, known, queries[qid], pool)
        one = table[qid]
        assert (list(one.positives), list(one.dids)) == (positives, negatives)
        np.testing.assert_allclose(one.positive_scores, [scores[did] for did in positives], atol=1e-6)
        np.testing.assert_allclose(one.scores, [scores[did] for did in negatives], atol=1e-6)


def test_no_list_holds_an_answer_a_copy_of_one_or_a_did_twice(benchmark, mined):
    pool = benchmark.union_pool("train")
    for table in mined[0].values():
        for one in table:
            digests = pool.digests[pool.positions(one.dids)]
            assert not np.isin(digests, pool.digests[pool.positions(one.positives)]).any()
            assert len(set(one.dids)) == len(one.dids) == len(one.scores) == DEPTH
            assert (np.diff(one.scores) <= 0).all() and (np.diff(one.positive_scores) <= 0).all()


def test_a_local_list_holds_what_its_task_looks_for(benchmark, mined):
    pool, queries = benchmark.union_pool("train"), {query.qid: query for query in benchmark.train_queries()}
    datasets = {}
    for one in mined[0]["local"]:
        task = Task(one.qid.split(":")[0], queries[one.qid].task_id)
        modalities = {MODALITIES[at] for at in pool.modalities[pool.positions(one.dids)]}
        assert modalities == {CANDIDATE_MODALITY[task.task_id]}
        datasets.setdefault(task, set()).update(did.split(":")[0] for did in one.dids)
    assert datasets.pop(Task("5", 6)) == datasets.pop(Task("6", 6)) == {"5", "6"}
    assert datasets.pop(Task("5", 8)) == datasets.pop(Task("6", 8)) == {"5", "6"}
    assert len(datasets) == 12 and all(found == {task.dataset} for task, found in datasets.items())


def test_the_union_holds_candidates_of_other_modalities_too(benchmark, mined):
    pool = benchmark.union_pool("train")
    kinds = [len(np.unique(pool.modalities[pool.positions(one.dids)])) for one in mined[0]["union"]]
    assert max(kinds) == 3


def test_everything_is_encoded_once_and_the_vectors_go(benchmark, mined):
    _, out, encoder = mined
    queries = {query.qid for query in benchmark.train_queries()}
    assert len(encoder.encoded) == len(queries) + len(benchmark.union_pool("train"))
    assert sorted(path.name for path in out.iterdir()) == ["local.parquet", "union.parquet"]


def test_queries_of_one_task_have_the_same_lists_and_nothing_else_is_encoded(benchmark, mined, tmp_path):
    tables, _, _ = mined
    encoder, queries = DrawnVectors(), benchmark.train_queries()
    group = min({query.group for query in queries})
    few = [query for query in queries if query.group == group]
    options = {"depth": DEPTH, "seed": SEED, "made_by": MADE_BY}
    found = mine_benchmark(encoder, benchmark, tmp_path / "few", queries=few, pools=["local"], **options)["local"]
    assert rows_of(found) == [row for row in rows_of(tables["local"]) if row[0] in {query.qid for query in few}]
    pool = benchmark.union_pool("train")
    wanted = CANDIDATE_MODALITY[few[0].task_id]
    of_others = {content(one.item) for one in pool.values() if one.modality != wanted}
    asked = {content(query.item) for query in few}
    assert of_others - asked and not of_others & set(encoder.encoded) - asked
    both = mine_benchmark(encoder, benchmark, tmp_path / "both", queries=few, **options)
    assert rows_of(both["local"]) == rows_of(found) and of_others <= set(encoder.encoded)


def test_tables_that_are_there_are_taken_and_others_refused(benchmark, mined, tmp_path):
    shutil.copytree(mined[1], tmp_path / "again")
    encoder = DrawnVectors()
    tables = mine_benchmark(encoder, benchmark, tmp_path / "again", depth=DEPTH, seed=SEED, made_by=MADE_BY)
    assert encoder.encoded == [] and rows_of(tables["union"]) == rows_of(mined[0]["union"])
    with pytest.raises(ValueError, match=r"local.parquet was made otherwise: depth was 20 and is 5\. Name another"):
        mine_benchmark(encoder, benchmark, tmp_path / "again", depth=5, seed=SEED, made_by=MADE_BY)
    (tmp_path / "again/local.parquet").unlink()
    with pytest.raises(ValueError, match=r"union.parquet was made otherwise: .*; seed was 4 and is 5\. Name"):
        mine_benchmark(encoder, benchmark, tmp_path / "again", pools=["local"], depth=DEPTH, seed=5, made_by=MADE_BY)
    with pytest.raises(ValueError, match="depth is 0; keep at least 1"):
        mine_benchmark(encoder, benchmark, tmp_path / "none", depth=0, seed=SEED, made_by=MADE_BY)
    assert encoder.encoded == []
    again = mine_benchmark(
        encoder, benchmark, tmp_path / "again", pools=["local"], depth=DEPTH, seed=SEED, made_by=MADE_BY
    )
    assert list(again) == ["local"] and rows_of(again["local"]) == rows_of(mined[0]["local"])


def test_lists_do_not_depend_on_the_size_of_blocks(benchmark, mined, tmp_path, monkeypatch):
    sizes = []

    def counted(vectors, searches, **kwargs):
        sizes.append(sum(len(one.queries) for one in searches.values()))
        return search_store(vectors, searches, **kwargs)

    monkeypatch.setattr("umarvel_hf.mining.search_store", counted)
    tables = mine_benchmark(
        DrawnVectors(), benchmark, tmp_path, depth=DEPTH, seed=SEED, made_by=MADE_BY, memory=300_000
    )
    assert len(sizes) > 2 and sum(sizes) == len(tables["local"])
    assert {pool: rows_of(table) for pool, table in tables.items()} == {
        pool: rows_of(table) for pool, table in mined[0].items()
    }


def test_instructions_follow_the_seed(benchmark, mined, tmp_path):
    other = mine_benchmark(DrawnVectors(), benchmark, tmp_path, depth=DEPTH, seed=5, made_by=MADE_BY)["union"]
    assert rows_of(other) != rows_of(mined[0]["union"])


def test_two_processes_mine_as_one_whatever_their_hash_seeds(root, mined, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        ranks = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    running = []
    for rank in ("0", "1"):
        environment = os.environ | ranks | {"RANK": rank, "LOCAL_RANK": rank, "PYTHONHASHSEED": rank}
        environment["OMP_NUM_THREADS"] = "1"  # accelerate warns of processes that do not say
        command = [sys.executable, *WARNINGS_ARE_ERRORS, mine_on_ranks.__file__, str(root), str(tmp_path)]
        running.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
    for process in running:
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
    shares = [int((tmp_path / f"encoded-{rank}").read_text()) for rank in (0, 1)]
    assert sum(shares) == len(mined[2].encoded) and abs(shares[0] - shares[1]) <= 2
    for pool, table in mined[0].items():
        assert (tmp_path / f"{pool}.parquet").read_bytes() == table.path.read_bytes()


def test_mining_that_was_stopped_goes_on(benchmark, mined, tmp_path, monkeypatch):
    class Stopped(DrawnVectors):
        def encode(self, inputs, **kwargs):
            if len(self.encoded) >= 600:
                raise KeyboardInterrupt
            return super().encode(inputs, **kwargs)

    monkeypatch.setitem(encode_store.__kwdefaults__, "shard_rows", 100)
    first, second = Stopped(), DrawnVectors()
    with pytest.raises(KeyboardInterrupt):
        mine_benchmark(first, benchmark, tmp_path, depth=DEPTH, seed=SEED, made_by=MADE_BY)
    assert not list(tmp_path.glob("*.parquet"))
    tables = mine_benchmark(second, benchmark, tmp_path, depth=DEPTH, seed=SEED, made_by=MADE_BY)
    assert len(first.encoded) == 600
    assert len(first.encoded) + len(second.encoded) == len(mined[2].encoded)
    assert rows_of(tables["union"]) == rows_of(mined[0]["union"])


def test_a_share_keeps_the_same_queries_with_the_same_lists(benchmark, mined, tmp_path):
    small = mine_benchmark(
        DrawnVectors(), benchmark, tmp_path / "a", depth=DEPTH, seed=SEED, made_by=MADE_BY, share=0.2
    )["union"]
    large = mine_benchmark(
        DrawnVectors(), benchmark, tmp_path / "b", depth=DEPTH, seed=SEED, made_by=MADE_BY, share=0.5
    )["union"]
    assert 20 < len(small) < 60 < len(large) < 135  # of 192
    assert set(small.qids) < set(large.qids)
    whole = {row[0]: row for row in rows_of(mined[0]["union"])}
    assert all(whole[row[0]] == row for row in rows_of(large))


def test_rows_of_one_qid_count_as_one_with_all_their_positives(benchmark, tmp_path):
    query = benchmark.train_queries()[0]
    first, other = (replace(query, positives=(did,)) for did in query.positives)
    table = mine_benchmark(
        DrawnVectors(), benchmark, tmp_path, made_by=MADE_BY, queries=[first, other], pools=["union"]
    )["union"]
    assert table.qids == [query.qid] and sorted(table[query.qid].positives) == sorted(query.positives)
    contradicting = [first, replace(other, text="Something else.")]
    with pytest.raises(ValueError, match=rf"query '{query.qid}' is .* in one row and .*Something else"):
        mine_benchmark(DrawnVectors(), benchmark, tmp_path, made_by=MADE_BY, queries=contradicting)


def test_bad_queries_and_pools_are_named(benchmark, tmp_path):
    query = benchmark.train_queries()[0]
    bad = replace(query, qid="0:77", positives=(query.positives[0], "0:nowhere"))
    with pytest.raises(ValueError, match="'0:77' has positive '0:nowhere'"):
        mine_benchmark(DrawnVectors(), benchmark, tmp_path, made_by=MADE_BY, queries=[query, bad])
    with pytest.raises(ValueError, match="'0:77' names no positive"):
        mine_benchmark(
            DrawnVectors(), benchmark, tmp_path, made_by=MADE_BY, queries=[query, replace(bad, positives=())]
        )
    with pytest.raises(ValueError, match=r"pools are \['global'\]; choose from local, union"):
        mine_benchmark(DrawnVectors(), benchmark, tmp_path, pools=["global"])
    with pytest.raises(ValueError, match="None of 1 training queries"):
        mine_benchmark(DrawnVectors(), benchmark, tmp_path, made_by=MADE_BY, queries=[query], share=0.0)


class Planted:
    """Gives every text the vector that stands in a dict."""

    def __init__(self, **vectors):
        self.vectors = vectors

    def encode(self, inputs, *, prompt=None, show_progress_bar=None):
        return np.stack([self.vectors[text] for text in inputs])


def test_data_of_ones_own_is_mined_with_ties_by_did_and_as_deep_as_there_are_candidates(tmp_path):
    query, right, far = unit_rows(3)
    encoder = Planted(query=query, right=right, twin=right, far=far)
    queries = Queries(["q"], ["query"], [None], [["d1", "d1"]])
    candidates = Candidates.of(["d1", "d2", "d3", "d4", "d5"], ["right", "right", "twin", "twin", "far"])
    table = mine(encoder, queries, candidates, tmp_path, depth=10, made_by=MADE_BY)["union"]
    one = table["q"]
    assert one.positives == ("d1",)
    assert [did for did in one.dids if did != "d5"] == ["d4", "d3"]  # not d2, a copy of the answer
    assert len(one.dids) == 3 and one.positive_scores[0] == one.scores[one.dids.index("d3")]
    score = half(query[None])[0] @ half(right[None])[0]
    assert one.positive_scores[0] == pytest.approx(score, abs=6e-7)


def test_lists_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match=r"queries have .*'items': 2.*'positives': 1"):
        Queries(["q", "r"], ["a", "b"], [None, None], [["d"]])
    with pytest.raises(ValueError, match="2 dids for 1 candidates"):
        Candidates.of(["d", "e"], ["right"])


def test_a_list_is_shown_in_words(benchmark, mined):
    table = mined[0]["union"]
    one, other = (table[qid] for qid in table.qids[:2])
    lines = show_lists(table, benchmark, qids=[one.qid, other.qid], top=3).splitlines()
    text = next(query.text for query in benchmark.train_queries() if query.qid == one.qid)
    assert lines[0].startswith(f"query {one.qid}") and text in lines[0]
    assert [line[0] for line in lines] == ["q", *"+" * len(one.positives), *"---q", *"+" * len(other.positives), *"---"]
    first = lines[1 + len(one.positives)]
    assert one.dids[0] in first and f"{one.scores[0]:.4f}" in first
    with pytest.raises(ValueError, match="'0:none' is not among the 192"):
        show_lists(table, benchmark, qids=["0:none"])
    other_data = SimpleNamespace(train_queries=list, union_pool=benchmark.union_pool, train_path="other.jsonl")
    with pytest.raises(ValueError, match=r"other.jsonl has no query .* Name the data that were mined"):
        show_lists(table, other_data, qids=[one.qid])
