"""Hit rates, paired tests, baselines, and the evaluation that puts them together."""

import itertools
from pathlib import Path

import evaluate
import numpy as np
import pytest
from PIL import Image

import umarvel_hf.evaluation.hit_rate as hit_rate_module
from colours import COLOURS, ColourEncoder, write_benchmark, write_lines
from umarvel_hf.data import Candidate, MBeir, Query, Task
from umarvel_hf.evaluation.baselines import BASELINES, BM25, Chance, PixelNeighbours, ranked, thumbnail
from umarvel_hf.evaluation.benchmark import evaluate_benchmark
from umarvel_hf.evaluation.metrics import first_hits, hits_at
from umarvel_hf.evaluation.results import Result, compare, verdict_lines
from umarvel_hf.evaluation.significance import holm, paired_randomisation

RANKED = [["a", "b", "c"], ["a", "b", "c"], ["a", "b"], []]
RIGHT = [["c", "b"], ["a"], ["z"], ["a"]]


def text(did, words):
    return Candidate(did, words, None, "text")


def asks(words, image=None):
    return Query("1:1", words, image, "text", (), 0)


# Metrics


def test_the_first_right_answer_counts():
    assert first_hits(RANKED, RIGHT).tolist() == [2, 1, 0, 0]
    assert hits_at(first_hits(RANKED, RIGHT), 1).tolist() == [False, True, False, False]
    with pytest.raises(ValueError, match="4 ranked lists for 1 sets"):
        first_hits(RANKED, RIGHT[:1])


def test_the_metric_of_evaluate_agrees_also_when_loaded_from_its_file():
    loaded = evaluate.load(hit_rate_module.__file__, keep_in_memory=True)
    for metric in (hit_rate_module.HitRate(keep_in_memory=True), loaded):
        found = metric.compute(predictions=RANKED, references=RIGHT, ks=(1, 2, 50))
        assert found == {"hit@1": 0.25, "hit@2": 0.5, "hit@50": 0.5}


# Significance


def exact_p_value(difference):
    """By counting all ways to flip the signs."""
    sums = [abs(np.dot(signs, difference)) for signs in itertools.product((-1, 1), repeat=len(difference))]
    return np.mean([one >= abs(np.sum(difference)) - 1e-9 for one in sums])


def test_the_paired_test_approaches_the_exact_one():
    first = np.array([1, 1, 1, 1, 1, 1, 1, 0, 0, 1, 0, 1.0])
    second = np.array([0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0.0])
    expected = exact_p_value((first - second)[first != second])
    assert expected == pytest.approx(0.0390625)  # 8 against 1, two-sided: 2 · (1 + 9) / 2 ** 9
    assert paired_randomisation(first, second) == pytest.approx(expected, abs=0.006)
    assert paired_randomisation(first, second) == paired_randomisation(second, first)


def test_the_paired_test_takes_graded_values_and_knows_its_limits():
    generator = np.random.default_rng(0)
    first = generator.normal(size=10)
    second = first + generator.normal(0.3, 0.5, size=10)
    assert paired_randomisation(first, second) == pytest.approx(exact_p_value(second - first), abs=0.015)
    assert paired_randomisation(first, first) == 1.0
    assert paired_randomisation(np.ones(300), np.zeros(300), flips=999) == pytest.approx(0.001)
    with pytest.raises(ValueError, match=r"\(3,\) and \(2,\)"):
        paired_randomisation(np.zeros(3), np.zeros(2))


def test_holm_corrects_as_worked_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


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


def test_every_candidate_is_encoded_once_and_every_query_with_its_instruction(result, encoder):
    (first_prompt, candidates), *queries = encoder.calls
    assert first_prompt is None
    assert len(candidates) == len({str(one) for one in candidates}) == 18
    assert [(prompt, len(items)) for prompt, items in queries] == [
        ("Find a darker one.", 6),
        ("Find its picture.", 6),
        ("Name this colour.", 6),
    ]
    assert queries[1][1] == [f"{name}." for name in COLOURS]


def test_hit_rates_are_those_of_a_brute_force_search(result, root):
    data, encoder = MBeir(root), ColourEncoder()
    for task in result.tasks:
        source = Task(task.dataset, task.task_id)
        queries = data.queries(source)
        for name, pool in (("local", data.pool(source)), ("union", data.union_pool())):
            dids = sorted(pool)
            scores = encoder.encode([one.item for one in queries]) @ encoder.encode([pool[did].item for did in dids]).T
            best = [sorted(zip(-row, dids, strict=True)) for row in scores]
            first = [
                [did for _, did in row].index(query.positives[0]) + 1 for row, query in zip(best, queries, strict=True)
            ]
            score = task.scores["model"][name]
            assert score.first_hits == [rank if rank <= 10 else 0 for rank in first]
            assert score.hit_rates["hit@1"] == pytest.approx(np.mean([rank == 1 for rank in first]))
    assert result.tasks[1].rate("model", "local", 1) == 1
    assert result.tasks[1].pool_sizes == {"local": 6, "union": 18}


def test_the_baselines_stand_where_they_can(result):
    dark, pictures, captions = result.tasks
    assert dark.rate("pixel kNN", "local", 1) == 1
    assert captions.comparison.queries == pictures.comparison.queries == 6
    assert result.baselines == list(BASELINES) == ["random", "BM25", "pixel kNN"]
    assert pictures.scores["BM25"]["local"] == pictures.scores["random"]["local"]  # pictures have no words


def test_a_second_run_is_the_same(result, root):
    again = evaluate_benchmark(ColourEncoder(), MBeir(root), settings={"model": "colours"})
    assert again.tasks == result.tasks
    assert again.types == result.types


def test_a_result_survives_json(result, tmp_path):
    result.save(tmp_path / "result.json")
    assert Result.load(tmp_path / "result.json") == result
    assert result.settings["model"] == "colours"
    assert result.settings["split"] == "test"
    assert result.counts == {"tasks": 3, "queries": 18, "candidates": 18}


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
    assert max(map(len, lines)) <= 130


def test_types_are_compared_over_all_data_sets(result):
    assert [one.name for one in result.types] == ["text → image", "image → text", "image → image"]
    assert verdict_lines(result)[1].startswith("Of 3 task types")


def test_a_comparison_takes_the_best_baseline_and_says_who_won():
    model, low, high = [1] * 30 + [0] * 10, [0] * 40, [9] * 20 + [5] * 20  # ranks; beyond 5 is a miss at R@5
    lost = compare("a", {"model": low, "random": low, "BM25": model})
    won = compare("b", {"model": model, "random": low, "BM25": low})
    open_ = compare("c", {"model": high, "random": high})
    assert (lost.baseline, lost.model, lost.baseline_score) == ("BM25", 0, 0.75)
    assert won.baseline == "random"
    assert open_.p_value == 1
    verdicts = [one.__class__(**{**vars(one), "p_holm": one.p_value}).verdict for one in (lost, won, open_)]
    assert verdicts == ["worse", "better", "no difference shown"]


def test_one_did_for_two_candidates_is_refused(tmp_path):
    root = write_benchmark(tmp_path)
    other = '{"did": "1:0", "txt": "another", "img_path": null, "modality": "text"}'
    write_lines(root / "cand_pool/global/mbeir_union_test_cand_pool.jsonl", [other])
    with pytest.raises(ValueError, match=r"did '1:0' is .* in the local pool of plain_task0"):
        evaluate_benchmark(ColourEncoder(), MBeir(root))


def test_file_order_decides_nothing(result, tmp_path):
    root = write_benchmark(tmp_path)
    for path in [*(root / "cand_pool").rglob("*.jsonl"), *(root / "qrels").rglob("*.txt")]:
        path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    reversed_result = evaluate_benchmark(ColourEncoder(), MBeir(Path(root)))
    assert reversed_result.tasks == result.tasks


def test_a_sentence_transformer_is_an_encoder(embedder, root):
    result = evaluate_benchmark(embedder, MBeir(root), batch_size=4)
    assert result.counts["queries"] == 18
