"""Baselines, and the evaluation that puts everything together."""

import json
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from colours import COLOURS, ColourEncoder, write_benchmark
from mbeir import KnownVectors, write_mbeir
from umarvel_hf.data import CANDIDATE_MODALITY, Candidate, MBeir, Query, Task
from umarvel_hf.evaluation.baselines import BASELINES, BM25, Chance, PixelNeighbours, ranked, thumbnail
from umarvel_hf.evaluation.benchmark import evaluate_benchmark, evaluate_run
from umarvel_hf.evaluation.published import published
from umarvel_hf.evaluation.results import MBEIR_TASKS, Result, against_best, verdict_lines
from umarvel_hf.evaluation.retrieval import Prompting
from umarvel_hf.reranking import Fusion


def text(did, words):
    return Candidate(did, words, None, "text")


def asks(words, image=None):
    return Query("1:1", words, image, "text", (), 0)


# Baselines


def test_chance_draws_another_order_for_every_query_and_the_same_again():
    chance = Chance([text(f"1:{at}", "") for at in range(100)])
    orders = [ranked(chance.scores(asks("")), 10, qid).tolist() for qid in ("1:1", "1:2", "1:1")]
    assert orders[0] == orders[2] != orders[1]
    assert len(set(orders[0])) == 10


def test_chance_is_fair():
    first = [int(ranked(np.zeros(10), 1, f"1:{at}")[0]) for at in range(2000)]
    assert np.bincount(first, minlength=10) == pytest.approx(200, abs=60)


def test_bm25_scores_as_worked_by_hand():
    bm25 = BM25([text("1:0", "A red cat."), text("1:1", "A cat, a cat, a dog."), text("1:2", "")])
    # two texts of mean length 4.5; "red" stands in one of them: log(1 + 1.5 / 1.5), "cat" in both: log(1 + 0.5 / 2.5)
    red = np.log(2) * 2.2 / (1 + 1.2 * (0.25 + 0.75 * 3 / 4.5))
    cat = np.log(1.2) * 2.2 / (1 + 1.2 * (0.25 + 0.75 * 3 / 4.5))
    cats = np.log(1.2) * 2 * 2.2 / (2 + 1.2 * (0.25 + 0.75 * 6 / 4.5))
    assert bm25.scores(asks("Red CAT?")) == pytest.approx([red + cat, cats, 0], rel=1e-5)
    assert bm25.scores(asks("horse")).tolist() == [0, 0, 0]


def test_bm25_without_any_text_ties_everything():
    assert BM25([text("1:0", ""), text("1:1", "")]).scores(asks("cat")).tolist() == [0, 0]


def stripes(path, light, dark):
    pixels = np.full((32, 32, 3), light, dtype=np.uint8)
    pixels[:16] = dark
    Image.fromarray(pixels).save(path)
    return Candidate(path.stem, "", path, "image")


def test_pixel_neighbours_compare_shapes_not_brightness(tmp_path):
    pool = [stripes(tmp_path / "a.png", 60, 10), stripes(tmp_path / "b.png", 10, 60), text("c", "a cat")]
    same = stripes(tmp_path / "same.png", 255, 200).image
    scores = PixelNeighbours(pool).scores(asks("", same))
    assert scores == pytest.approx([1, -1, -2], abs=1e-5)
    assert PixelNeighbours(pool).scores(asks("a cat")).tolist() == [0, 0, 0]
    assert PixelNeighbours(pool[2:]).scores(asks("", same)).tolist() == [-2]


def test_a_transparent_thumbnail_stands_on_white(tmp_path):
    clear = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
    clear.paste((255, 0, 0, 255), (0, 0, 10, 20))
    clear.save(tmp_path / "clear.png")
    solid = Image.new("RGB", (20, 20), "white")
    solid.paste((255, 0, 0), (0, 0, 10, 20))
    solid.save(tmp_path / "solid.png")
    assert thumbnail(tmp_path / "clear.png") == pytest.approx(thumbnail(tmp_path / "solid.png"))
    Image.new("RGB", (20, 20), (9, 9, 9)).save(tmp_path / "plain.png")
    assert not thumbnail(tmp_path / "plain.png").any()


def test_an_image_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"broken.png: the image cannot be read"):
        thumbnail(tmp_path / "broken.png")
    with pytest.raises(ValueError, match=r"gone.png: the image cannot be read"):
        thumbnail(tmp_path / "gone.png")


# The whole evaluation


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_benchmark(tmp_path_factory.mktemp("colours"))


@pytest.fixture(scope="module")
def encoder():
    return ColourEncoder()


@pytest.fixture(scope="module")
def result(root, encoder):
    return evaluate_benchmark(encoder, MBeir(root), settings={"model": "colours"})


@pytest.fixture(scope="module")
def mbeir(tmp_path_factory):
    root = tmp_path_factory.mktemp("mbeir")
    return root, write_mbeir(root)


@pytest.fixture(scope="module")
def whole(mbeir, tmp_path_factory):
    root, known = mbeir
    runs = tmp_path_factory.mktemp("runs")
    return evaluate_benchmark(known, MBeir(root), suite="m-beir", runs=runs), runs


def test_every_candidate_is_encoded_once_and_every_query_with_its_instruction(result, encoder):
    candidates = [str(item) for prompt, items in encoder.calls if prompt is None for item in items]
    assert len(candidates) == len(set(candidates)) == 18
    queries = [(prompt, items) for prompt, items in encoder.calls if prompt is not None]
    assert [(prompt, len(items)) for prompt, items in queries] == [
        ("Find a darker one.", 6),
        ("Find its picture.", 6),
        ("Name this colour.", 6),
    ]
    assert queries[1][1] == [f"{name}." for name in COLOURS]


def by_brute_force(known, data, task, pool, instruction):
    """Ranked dids of every query, from the vectors as drawn."""
    dids = sorted(pool, reverse=True)  # of equal scores the higher id comes first
    vectors = known.encode([pool[did].item for did in dids]).astype(np.float16).astype(np.float32)
    ranked = []
    for query in data.queries(task):
        asked = known.encode([query.item], prompt=instruction(query))[0].astype(np.float16).astype(np.float32)
        order = np.argsort(-(vectors @ asked).round(6), kind="stable")
        ranked.append([dids[at] for at in order])
    return ranked


@pytest.mark.parametrize("task", MBEIR_TASKS, ids=lambda task: task.name)
def test_every_number_is_that_of_a_brute_force_search(task, mbeir, whole):
    root, known = mbeir
    data = MBeir(root)
    found = next(one for one in whole[0].tasks if one.name == task.name)
    right = [set(data.qrels(task)[qid]) for qid in found.qids]
    assert found.metric == ("hit@10" if task.dataset in ("fashion200k", "fashioniq") else "hit@5")
    for name, pool in (("local", data.pool(task)), ("union", data.union_pool())):
        ranked = by_brute_force(known, data, task, pool, lambda query: f"Find {task.name}.")
        values = found.scores["model"][name].values
        for k in (1, 5, 10, 50):
            assert values[f"hit@{k}"] == [
                any(did in own for did in row[:k]) for row, own in zip(ranked, right, strict=True)
            ]
        shares = [len(own & set(row[:5])) / len(own) for row, own in zip(ranked, right, strict=True)]
        assert values["recall@5"] == pytest.approx(shares, abs=1e-6)
        wanted = CANDIDATE_MODALITY[task.task_id]
        wrong = [np.mean([pool[did].modality != wanted for did in row[:10]]) for row in ranked]
        assert values["wrong_modality@10"] == pytest.approx(wrong, abs=1e-6)
        assert found.top[name] == [row[:10] for row in ranked]
        assert found.pool_sizes[name] == len(pool)


def test_the_mean_of_sixteen_takes_ten_for_fashion(whole):
    result = whole[0]
    assert len(result.tasks) == 16 and result.missing == []
    own = [np.mean(task.scores["model"]["union"].values[task.metric]) for task in result.tasks]
    assert result.mean("M-BEIR", "model", "union") == pytest.approx(np.mean(own))
    assert result.mean("M-BEIR", "model", "local") > result.mean("M-BEIR", "model", "union")
    assert result.baselines == []
    lines = result.table().splitlines()
    assert lines[1].split()[:8] == ["dataset", "task", "queries", "pool", "R@1", "score", "R@10", "R@1"]
    assert lines[4].split()[0] == "fashion200k" and lines[4].endswith("R@10")
    assert lines[-1].split()[:2] == ["M-BEIR", "mean"] and lines[-1].endswith("of 16 tasks")


def test_a_run_file_gives_the_same_numbers_again(whole):
    result, runs = whole
    for task in result.tasks:
        for pool in ("local", "union"):
            again = evaluate_run(runs / pool / f"{task.name}.txt", runs / "qrels" / f"{task.name}.txt")
            values = again.tasks[0].scores["model"]["local"].values
            assert values == {name: task.scores["model"][pool].values[name] for name in values}
            assert again.tasks[0].qids == task.qids
    assert again.table().splitlines()[2].split()[:2] == ["infoseek_task8", "run"]


def test_a_run_of_other_queries_is_refused_and_missing_queries_count(whole, tmp_path):
    _, runs = whole
    run, qrels = runs / "local/nights_task4.txt", runs / "qrels/nights_task4.txt"
    with pytest.raises(ValueError, match=r"12 of 12 queries have no right answer in .*cirr_task7.txt, '4:0' the first"):
        evaluate_run(run, runs / "qrels/cirr_task7.txt")
    lines = run.read_text().splitlines(keepends=True)
    (tmp_path / "run.txt").write_text("".join(line for line in lines if not line.startswith("4:0 ")))
    whole_run, cut = (evaluate_run(one, qrels) for one in (run, tmp_path / "run.txt"))
    assert cut.counts["queries without a list"] == 1
    assert cut.tasks[0].qids == whole_run.tasks[0].qids
    assert cut.tasks[0].scores["model"]["local"].values["hit@50"][0] == 0


def test_a_second_run_is_the_same(mbeir, whole):
    root, known = mbeir
    again = evaluate_benchmark(known, MBeir(root), suite="m-beir")
    assert again.tasks == whole[0].tasks


class StopsAfter(KnownVectors):
    """Breaks down after so many calls."""

    def __init__(self, vectors, calls):
        super().__init__(vectors)
        self.calls_left = calls

    def encode(self, inputs, **kwargs):
        if not self.calls_left:
            raise KeyboardInterrupt
        self.calls_left -= 1
        return super().encode(inputs, **kwargs)


def test_interrupted_and_resumed_is_unbroken(mbeir, whole, tmp_path, monkeypatch):
    root, known = mbeir
    monkeypatch.setattr("umarvel_hf.evaluation.retrieval.fingerprint", lambda encoder: {"encoder": "known"})
    encoded = []
    for calls in (5, 14, 6, 1000):
        encoder = StopsAfter(known.vectors, calls)
        with suppress(KeyboardInterrupt):
            result = evaluate_benchmark(encoder, MBeir(root), suite="m-beir", vectors=tmp_path)
        encoded += encoder.encoded
    assert result.tasks == whole[0].tasks
    assert len(encoded) == len(set(encoded)) == 16 * (12 + 40)
    unneeded = StopsAfter(known.vectors, 0)
    assert evaluate_benchmark(unneeded, MBeir(root), suite="m-beir", vectors=tmp_path).tasks == whole[0].tasks


def test_vectors_of_another_model_are_refused(mbeir, tmp_path):
    root, known = mbeir
    options = {"suite": "m-beir", "vectors": tmp_path, "tasks": ["nights_task4"], "pools": ["local"]}
    evaluate_benchmark(known, MBeir(root), **options)
    with pytest.raises(ValueError, match=r"KnownVectors.*StopsAfter"):
        evaluate_benchmark(StopsAfter(known.vectors, 99), MBeir(root), **options)


def test_single_tasks_agree_with_the_whole_and_encode_no_other_pool(mbeir, whole):
    root, known = mbeir
    encoder = KnownVectors(known.vectors)
    options = {"suite": "m-beir", "tasks": ["nights_task4", "mscoco_task0"]}
    result = evaluate_benchmark(encoder, MBeir(root), pools=["local"], **options)
    assert len(encoder.encoded) == 2 * (12 + 40)
    assert result.pools == ["local"]
    same = {task.name: task for task in whole[0].tasks}
    for task in evaluate_benchmark(encoder, MBeir(root), **options).tasks:
        assert task == same[task.name]
    assert "Not evaluated: visualnews_task0" in result.table()
    assert result.tasks[0].scores["model"]["local"] == same[result.tasks[0].name].scores["model"]["local"]


def test_the_union_is_the_concatenation_also_without_its_file(mbeir, whole, tmp_path):
    root, known = mbeir
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    (tmp_path / "cand_pool/global/mbeir_union_test_cand_pool.jsonl").unlink()
    assert evaluate_benchmark(known, MBeir(tmp_path), suite="m-beir").tasks == whole[0].tasks


def test_the_union_file_may_add_candidates(mbeir, tmp_path):
    root, known = mbeir
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    for kind in ("query/test/mbeir_oven_task6_test.jsonl", "cand_pool/local/mbeir_oven_task6_cand_pool.jsonl"):
        (tmp_path / kind).unlink()
    task = evaluate_benchmark(known, MBeir(tmp_path), suite="m-beir").tasks[0]
    assert task.pool_sizes == {"local": 40, "union": 640}


def test_all_instructions_give_the_mean_and_the_spread(mbeir, whole):
    root, known = mbeir
    options = {"suite": "m-beir", "tasks": ["webqa_task2"]}
    one, every = (
        evaluate_benchmark(known, MBeir(root), instructions=how, **options).tasks[0] for how in ("first", "all")
    )
    data, task = MBeir(root), Task("webqa", 2)
    means = []
    for way in ("Find", "Show", "Get"):
        ranked = by_brute_force(known, data, task, data.union_pool(), lambda query, way=way: f"{way} webqa_task2.")
        right = data.qrels(task)
        pairs = zip(ranked, every.qids, strict=True)
        means.append(np.mean([any(did in right[qid] for did in row[:5]) for row, qid in pairs]))
    assert every.by_prompt["union"] == pytest.approx(means)
    assert every.rate("model", "union") == pytest.approx(np.mean(means), abs=1e-6)
    assert one.by_prompt == {} and one.rate("model", "union") == pytest.approx(means[0])


def test_seeded_instructions_depend_on_seed_and_query_alone(mbeir):
    data, task = MBeir(mbeir[0]), Task("nights", 4)
    queries, modalities = data.queries(task), ["image"] * 12
    first, again, other = (Prompting("seeded", seed).choose(data, task, queries, modalities)[0] for seed in (0, 0, 1))
    assert first == again != other
    assert len(set(first)) == 3
    assert Prompting("seeded").choose(data, task, queries[5:], modalities[5:])[0] == first[5:]


def test_the_gold_modality_can_be_switched_off(root, tmp_path):
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    pool = tmp_path / "cand_pool/local/mbeir_plain_task0_cand_pool.jsonl"
    pool.write_text(pool.read_text() + write_line(did="1:99", txt="a red square", modality="text"))
    qrels = tmp_path / "qrels/test/mbeir_plain_task0_test_qrels.txt"
    qrels.write_text("1:0 0 1:99 1 0\n" + qrels.read_text())
    with (tmp_path / "instructions/query_instructions.tsv").open("a") as file:
        file.write("text\ttext\tplain\t1\tFind its text.\n")
    for gold, expected in ((True, {"Find its text.", "Find its picture."}), (False, {"Find its picture."})):
        encoder = ColourEncoder()
        evaluate_benchmark(encoder, MBeir(tmp_path), tasks=["plain_task0"], pools=["local"], gold_modality=gold)
        assert {prompt for prompt, _ in encoder.calls} - {None} == expected


def write_line(**fields):
    return json.dumps({"img_path": None, "src_content": None, **fields}) + "\n"


def test_the_union_alone_is_compared_with_its_baselines(result, root):
    alone = evaluate_benchmark(ColourEncoder(), MBeir(root), pools=["union"])
    assert alone.pools == ["union"]
    assert alone.tasks[0].scores["BM25"]["union"] == result.tasks[0].scores["BM25"]["union"]
    assert [one.queries for one in alone.types] == [6, 6, 6]


def test_what_cannot_be_evaluated_is_refused(mbeir, root):
    folder, known = mbeir
    with pytest.raises(ValueError, match="suite is 'mbeir'; choose one of m-beir, emoji"):
        evaluate_benchmark(known, MBeir(folder), suite="mbeir")
    with pytest.raises(ValueError, match="no test queries of any of M-BEIR's 16 configurations, only of dark_task4"):
        evaluate_benchmark(ColourEncoder(), MBeir(root), suite="m-beir")
    with pytest.raises(ValueError, match="no test queries for nights_task5; it has visualnews_task0"):
        evaluate_benchmark(known, MBeir(folder), suite="m-beir", tasks=["nights_task5"])
    with pytest.raises(ValueError, match=r"pools are \['global'\]; name one or both of local, union"):
        evaluate_benchmark(known, MBeir(folder), pools=["global"])
    with pytest.raises(ValueError, match=r"No task is named; .* has visualnews_task0"):
        evaluate_benchmark(known, MBeir(folder), suite="m-beir", tasks=[])
    with pytest.raises(ValueError, match="memory is 9 bytes, but the queries alone take 384"):
        evaluate_benchmark(known, MBeir(folder), tasks=["nights_task4"], memory=9)
    with pytest.raises(ValueError, match="weight is nan, top is 5"):
        Fusion(float("nan"), "val", 5, {}, {}, "none")
    with pytest.raises(ValueError, match="instructions is 'random'"):
        evaluate_benchmark(known, MBeir(folder), instructions="random")
    with pytest.raises(ValueError, match="reranker and fusion belong together"):
        evaluate_benchmark(known, MBeir(folder), reranker=object())
    fusion = Fusion(1.0, "val", 5, {}, {}, "none")
    with pytest.raises(ValueError, match="with it, instructions are first or seeded"):
        evaluate_benchmark(known, MBeir(folder), reranker=object(), fusion=fusion, instructions="all")


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        (
            "instructions/query_instructions.tsv",
            "image\timage\tnights\t4",
            "image\ttext\tnights\t4",
            r"needs prompts for",
        ),
        (
            "qrels/test/mbeir_cirr_task7_test_qrels.txt",
            " 1 7\n",
            " 1\n",
            r"cirr_task7_test_qrels.txt:1: .*five columns",
        ),
        (
            "query/test/mbeir_cirr_task7_test.jsonl",
            '"task_id": 7}\n',
            '"task_id": 7',
            r"cirr_task7_test.jsonl:1: not JSON",
        ),
        ("cand_pool/local/mbeir_oven_task8_cand_pool.jsonl", '"did": "5:1003"', '"did": 7', r"oven_task8.*:4: .*did 7"),
    ],
)
def test_bad_data_are_named_before_anything_is_encoded_or_written(mbeir, tmp_path, name, old, new, message):
    root, known = mbeir
    data = shutil.copytree(root, tmp_path / "data")
    (data / name).write_text((data / name).read_text().replace(old, new))
    encoder = KnownVectors(known.vectors)
    with pytest.raises(ValueError, match=message):
        evaluate_benchmark(encoder, MBeir(data), suite="m-beir", vectors=tmp_path / "out", runs=tmp_path / "out")
    assert encoder.encoded == [] and not (tmp_path / "out").exists()


def test_the_baselines_stand_where_they_can(result):
    dark, pictures, captions = result.tasks
    assert dark.rate("pixel kNN", "local", "hit@1") == 1
    assert captions.comparison.queries == pictures.comparison.queries == 6
    assert result.baselines == list(BASELINES) == ["random", "BM25", "pixel kNN"]
    assert pictures.scores["BM25"]["local"] == pictures.scores["random"]["local"]  # pictures have no words


def test_a_result_survives_json(result, tmp_path):
    result.save(tmp_path / "result.json")
    assert Result.load(tmp_path / "result.json") == Result.load(tmp_path) == result
    assert result.settings["model"] == "colours"
    assert result.settings["split"] == "test"
    assert result.counts == {"tasks": 3, "queries": 18, "candidates": 18}
    (tmp_path / "result.json").write_text('{"format": 1}')
    with pytest.raises(ValueError, match=r"result.json has format 1; this version reads 2"):
        Result.load(tmp_path)
    for whole, broken in (('"types":', '"kinds":'), ("[1.0,", "[NaN,")):
        (tmp_path / "result.json").write_text(result.as_json().replace(whole, broken, 1))
        with pytest.raises(ValueError, match=r"result.json is no"):
            Result.load(tmp_path)
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(ValueError, match=r"result.json is not JSON"):
        Result.load(tmp_path)


def test_the_table_is_aligned_and_complete(result):
    lines = result.table().splitlines()
    assert lines[1].split()[:5] == ["dataset", "task", "queries", "pool", "R@1"]
    assert [line.split()[:2] for line in lines[2:7]] == [
        ["dark", "i->i"],
        ["dark", "mean"],
        ["plain", "t->i"],
        ["plain", "i->t"],
        ["plain", "mean"],
    ]
    assert {line[lines[1].index("queries") + 6] for line in (lines[2], lines[4], lines[5])} == {"6"}
    assert lines[2].endswith("no difference shown, p 1.0000")
    assert "Of 3 tasks the model is better than the best baseline on 0, worse on 0; on 3" in result.table()
    assert result.table().isascii()
    assert max(map(len, lines)) <= 140


def test_types_are_compared_over_all_data_sets(result):
    assert [one.name for one in result.types] == ["text → image", "image → text", "image → image"]
    assert verdict_lines(result)[1].startswith("Of 3 task types")


def test_the_best_baseline_is_compared_with():
    model, low = np.array([1.0] * 30 + [0] * 10), np.zeros(40)
    lost = against_best("a", "hit@5", {"model": low, "random": low, "BM25": model})
    won = against_best("b", "hit@5", {"model": model, "random": low, "BM25": low})
    assert (lost.second, lost.first_score, lost.second_score) == ("BM25", 0, 0.75)
    assert won.second == "random"
    assert against_best("c", "hit@5", {"model": model, "re-ranked": model}) is None


def test_one_did_for_two_candidates_is_refused(tmp_path):
    root = write_benchmark(tmp_path)
    pool = root / "cand_pool/local/mbeir_dark_task4_cand_pool.jsonl"
    pool.write_text(pool.read_text() + write_line(did="1:0", txt="another", modality="text"))
    with pytest.raises(ValueError, match=r"did '1:0' is .*Another.* in .*dark_task4_cand_pool.jsonl and"):
        evaluate_benchmark(ColourEncoder(), MBeir(root))
    root = write_benchmark(tmp_path / "other")
    union = root / "cand_pool/global/mbeir_union_test_cand_pool.jsonl"
    union.write_text(union.read_text().replace("a red square", "a crimson square"))
    told = r"'1:10' is .*red.* in .*plain_task3_cand_pool.jsonl and .*crimson.* in .*union_test"
    with pytest.raises(ValueError, match=told):
        evaluate_benchmark(ColourEncoder(), MBeir(root))


class Asked:
    """A re-ranker that has no opinion and remembers what it was asked."""

    def __init__(self):
        self.pairs = []

    def predict(self, inputs, **_):
        self.pairs += [str(pair) for pair in inputs]
        return np.full(len(inputs), 0.5)


def test_what_stands_in_two_pools_is_encoded_and_judged_once(root, tmp_path):
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    pools = tmp_path / "cand_pool/local"
    with (pools / "mbeir_dark_task4_cand_pool.jsonl").open("a") as file:
        file.write((pools / "mbeir_plain_task0_cand_pool.jsonl").read_text())
    encoder, reranker = ColourEncoder(), Asked()
    fusion = Fusion(1.0, "val", 50, {}, {}, "none")
    result = evaluate_benchmark(encoder, MBeir(tmp_path), reranker=reranker, fusion=fusion)
    assert [task.pool_sizes for task in result.tasks][:2] == [{"local": 12, "union": 18}, {"local": 6, "union": 18}]
    candidates = [str(item) for prompt, items in encoder.calls if prompt is None for item in items]
    assert len(candidates) == len(set(candidates)) == 18
    assert len(reranker.pairs) == len(set(reranker.pairs)) == 18 * 18
    assert result.tasks[0].scores["re-ranked"] == result.tasks[0].scores["model"]


def test_file_order_decides_nothing(result, tmp_path):
    root = write_benchmark(tmp_path)
    for path in [*(root / "cand_pool").rglob("*.jsonl"), *(root / "qrels").rglob("*.txt")]:
        path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    reversed_result = evaluate_benchmark(ColourEncoder(), MBeir(Path(root)))
    assert reversed_result.tasks == result.tasks


def test_a_sentence_transformer_is_an_encoder(embedder, root):
    result = evaluate_benchmark(embedder, MBeir(root), batch_tokens=100)
    assert result.counts["queries"] == 18
    assert len(result.settings["weights"]) == 16


def test_published_rows_are_the_printed_ones():
    tables = published()
    assert {len(row.scores) for rows in tables.rows.values() for row in rows} == {16}
    assert set(tables.rows["local"][0].scores) == {task.name for task in MBEIR_TASKS}
    for pool, rows in tables.rows.items():
        for row in rows:
            off = abs(np.mean(list(row.scores.values())) - row.average)
            printed_wrong = (pool, row.model) == ("union", "U-MARVEL+ Qwen2VL-7B")  # as the notes say
            assert off < 0.051 or printed_wrong
    best = next(row for row in tables.rows["local"] if row.model == "U-MARVEL Qwen2VL-7B")
    assert (best.scores["fashion200k_task0"], best.average, best.reranked) == (33.6, 63.2, False)
