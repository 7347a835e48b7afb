"""The page that an evaluation writes."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from colours import ColourEncoder, write_benchmark
from umarvel_hf import charts
from umarvel_hf.charts import Mark
from umarvel_hf.data import MBeir
from umarvel_hf.evaluation.benchmark import evaluate_benchmark
from umarvel_hf.evaluation.frontier import FrontierPoint
from umarvel_hf.evaluation.published import published
from umarvel_hf.evaluation.results import (
    MBEIR_TASKS,
    METRICS,
    MODEL,
    RERANKED,
    WRONG_MODALITY,
    PoolScore,
    Result,
    TaskResult,
    verdict_lines,
)
from umarvel_hf.report import PICTURE_MAX_PIXELS, interval, picture, write_report

VOID = {"meta", "img", "br"}
HOSTILE = "<script>alert(1)</script> & \"'"


class Page(HTMLParser):
    """Collects tags, attributes and the rows of tables, and checks that every element is closed."""

    def __init__(self, text):
        super().__init__()
        self.found, self.open, self.rows = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    def row(self, *first):
        """The rows of tables that begin so."""
        return [row for row in self.rows if tuple(row[: len(first)]) == first]


class SeesNothing(ColourEncoder):
    """Takes every item for the same."""

    def _colour(self, item):
        return super()._colour("red")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = write_benchmark(tmp_path_factory.mktemp("colours"))
    path = root / "cand_pool/local/mbeir_plain_task3_cand_pool.jsonl"
    union = root / "cand_pool/global/mbeir_union_test_cand_pool.jsonl"
    for file in (path, union):
        file.write_text(file.read_text().replace("a red square", "a <b>red</b> & <script>alert(1)</script> square"))
    return MBeir(root)


@pytest.fixture(scope="module")
def result(data):
    return evaluate_benchmark(SeesNothing(), data, settings={"model": f"blind {HOSTILE}", "command": f"run {HOSTILE}"})


@pytest.fixture(scope="module")
def page(result, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "new/report.html"
    return write_report(result, data, out, descriptions={"dark": f"shades {HOSTILE}"}).read_text(encoding="utf-8")


def made(tasks=tuple(MBEIR_TASKS), pools=("local", "union"), **fields):
    """An evaluation of M-BEIR by hand: ten queries a task, ever fewer of them with a hit; the re-ranker finds more."""
    results = []
    for at, task in enumerate(tasks):
        scores = {system: {pool: score(at, 2 * (system == RERANKED)) for pool in pools} for system in (MODEL, RERANKED)}
        results.append(
            TaskResult(
                dataset=task.dataset,
                task_id=task.task_id,
                metric=f"hit@{MBEIR_TASKS[task]}",
                qids=[f"1:{number}" for number in range(10)],
                pool_sizes=dict.fromkeys(pools, 12_345),
                scores=scores,
                top={pool: [["1:1"]] * 10 for pool in pools},
                by_prompt={pool: [0.25, 0.5, 0.375 + at / 100] for pool in pools},
            )
        )
    counts = {"tasks": len(results), "queries": 10 * len(results), "candidates": 99_999}
    fusion = {
        "weight": 0.5, "split": "val", "top": 50, "qids": {"mscoco_task0": ["9:1", "9:2"]},
        "curve": {"0.0": 0.511, "0.5": 0.524, "2.0": 0.503}, "reranker": f"judge {HOSTILE}",
    }  # fmt: skip
    return Result("m-beir", results, [], {"split": "test"}, counts, {"searching": 1.25}, **{"fusion": fusion} | fields)


def score(at, more):
    """Metrics that all differ from each other, and from task to task."""
    hits = [1.0] * (9 - at // 2 + more) + [0.0] * 20
    values = {name: [max(0, hit - number / 100) for hit in hits[:10]] for number, name in enumerate(METRICS)}
    return PoolScore(values | {"hit@5": hits[:10], "hit@10": hits[:10], WRONG_MODALITY: [at / 20] * 10})


@pytest.fixture(scope="module")
def mbeir():
    return made()


@pytest.fixture(scope="module")
def mbeir_page(mbeir, tmp_path_factory):
    return write_report(mbeir, None, tmp_path_factory.mktemp("out") / "report.html").read_text(encoding="utf-8")


def written(result, tmp_path, benchmark=None, **options):
    text = write_report(result, benchmark, tmp_path / "report.html", **options).read_text(encoding="utf-8")
    Page(text)
    return text


def percent(share):
    return f"{100 * share:.1f}"


def test_the_page_stands_alone(page, mbeir_page):
    for text in (page, mbeir_page):
        tags = Page(text).found
        assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in tags}
        assert not re.search(r"url\(|@import|https?:|href", text)
        sources = [attributes["src"] for tag, attributes in tags if tag == "img"]
        assert all(source.startswith("data:image/") for source in sources)
    assert '<img src="data:image/png' in page


def test_what_comes_from_data_and_settings_is_escaped(page, mbeir_page):
    assert "<script" not in page + mbeir_page
    for name in ("blind", "run", "shades", "judge"):
        assert f"{name} &lt;script&gt;alert(1)" in page + mbeir_page


def test_groups_head_the_page_with_their_means(page, result):
    rows = Page(page).rows
    for group in ("plain", "dark"):
        assert [MODEL, percent(result.mean(group, MODEL, "local")), percent(result.mean(group, MODEL, "union"))] in rows
        for baseline in result.baselines:
            means = [percent(result.mean(group, baseline, pool)) for pool in ("local", "union")]
            assert [baseline, *means] in rows
    assert page.index(verdict_lines(result)[0]) < page.index("Task by task")


def test_every_metric_of_every_system_is_on_the_page(page, result, mbeir_page, mbeir):
    for text, evaluated in ((page, result), (mbeir_page, mbeir)):
        rows = Page(text).rows
        for task in evaluated.tasks:
            for system in evaluated.systems:
                for pool in evaluated.pools:
                    values = [percent(task.rate(system, pool, name)) for name in task.scores[system][pool].values]
                    assert any(row[1:] == [system, *values] for row in rows)


def test_the_row_of_a_task_holds_its_scores_intervals_and_comparison(page, result):
    task = result.tasks[0]
    (row,) = [row for row in Page(page).row(task.type) if len(row) == 14]
    low, high = interval(task, MODEL, "local", "hit@5")
    assert row[1] == f"\n{percent(task.rate(MODEL, 'local'))}{percent(low)}–{percent(high)}".lstrip()
    assert row[3] == percent(task.rate(MODEL, "union", WRONG_MODALITY))
    assert row[4:6] == [task.comparison.second, percent(task.comparison.second_score)]
    assert row[6] == "○ no difference shown"
    assert row[8] == f"{task.comparison.p_holm:.4f}"
    assert row[9] == f"{task.comparison.wins} : {task.comparison.losses}"
    assert row[11:] == ["6", "6", "18"]


def test_m_beirs_own_metrics_stand_beside_the_published_rows(mbeir_page, mbeir):
    page = Page(mbeir_page)
    ours, reranked = page.row("▶ this result"), page.row("▶ this result ↻")
    assert [len(ours), len(reranked)] == [2, 2]  # a table a pool
    for system, row in ((MODEL, ours[0]), (RERANKED, reranked[0])):
        assert row[1] == percent(mbeir.mean("M-BEIR", system, "local"))
        assert row[2:] == [percent(task.rate(system, "local")) for task in mbeir.tasks]
    for row in published().rows["union"]:
        mark = " ↻" if row.reranked else ""
        assert [row.model + mark, f"{row.average:.1f}", *map("{:.1f}".format, row.scores.values())] in page.rows
    assert all(note.replace("'", "&#39;") in mbeir_page for note in published().notes)
    assert "copied from where they were published, not measured here" in mbeir_page
    assert "while the others are of the test split" not in mbeir_page


def test_a_mean_over_some_of_m_beir_says_so_and_is_no_published_average(tmp_path):
    page = written(made(tuple(MBEIR_TASKS)[:2]), tmp_path)
    assert page.count("mean of 2 of 16 tasks") == 2
    assert "Missing: fashion200k_task0, webqa_task1" in page
    for row in Page(page).row("▶ this result"):
        assert row[1] == "–"
        assert row[2:5] == ["90.0", "90.0", "–"]


def test_another_split_than_the_published_one_is_said(mbeir, tmp_path):
    page = written(replace(mbeir, settings={"split": "val"}), tmp_path)
    assert "this result, on split val, while the others are of the test split" in page


def test_the_re_rankers_weight_and_its_data_are_told(mbeir_page):
    assert "fitted on split <b>val</b>, on 2 queries of 1 task" in mbeir_page
    assert "cosine + 0.5 × P(Yes)" in mbeir_page
    assert ">52.4</text>" in mbeir_page  # the chosen point of the curve


def test_the_spread_over_prompts_is_mean_least_and_most(mbeir_page):
    assert ">37.5 (25.0–50.0)</text>" in mbeir_page
    assert "means over the prompts" in mbeir_page


def test_what_was_not_measured_has_no_section(mbeir, page, tmp_path):
    plain = [
        replace(task, by_prompt={}, scores={MODEL: {"local": task.scores[MODEL]["local"]}}, pool_sizes={"local": 7})
        for task in mbeir.tasks
    ]
    alone = written(replace(mbeir, tasks=plain, fusion=None), tmp_path)
    for heading in ("Spread over prompts", "Re-ranking", "Smaller vectors"):
        assert heading not in page + alone
    assert "The union pool was not searched" in alone
    assert "wrong modality" not in alone.partition("Every metric")[0].lower()
    assert "baseline" not in alone
    assert "Beside published numbers" not in page


def test_only_the_union_pool_is_enough(mbeir, tmp_path):
    tasks = [
        replace(task, pool_sizes={"union": 7}, scores={MODEL: {"union": task.scores[MODEL]["union"]}}, by_prompt={})
        for task in mbeir.tasks
    ]
    page = written(replace(mbeir, tasks=tasks, fusion=None), tmp_path)
    assert "score, union pool" in page
    assert "local → union" not in page


def test_a_run_file_has_a_page_too(tmp_path):
    values = {"hit@5": [1.0, 0.0], "map": [0.5, 0.25]}
    task = TaskResult("mine", None, "hit@5", ["1", "2"], {"local": 3}, {MODEL: {"local": PoolScore(values)}}, {})
    result = Result("trec", [task], [], {"run": "a.txt", "split": ""}, {"tasks": 1, "queries": 2}, {})
    page = written(result, tmp_path)
    assert "2 queries of 1 task." in " ".join(page.split())
    assert ["mine: run file", "model", "50.0", "37.5"] in Page(page).rows


def test_the_page_shows_examples_with_right_answers_marked(page):
    tags = Page(page).found
    kinds = [attributes["class"].split()[1:] for tag, attributes in tags if tag == "figure"]
    examples = page.count('class="example"')
    # All vectors tie, so the union begins with the greatest dids, five pictures: the wrong modality for image → text.
    assert kinds.count(["right"]) == examples == 3 * 2 + 1
    assert page.count("✓ missed") == page.count("no right answer among the first 5")
    assert page.count("union pool · no right answer among the first 5, wrong modality at rank 1") == 1
    assert kinds.count(["wrong"]) == page.count(", image</span>") == 5
    assert "Find its picture." in page


def test_a_seeded_prompt_is_shown_as_it_was_asked(data, tmp_path):
    pages = [
        written(evaluate_benchmark(SeesNothing(), data, instructions="seeded", seed=seed), tmp_path, data)
        for seed in range(5)
    ]
    assert len({page.count("Show it.") for page in pages}) > 1


def test_without_the_data_the_page_says_so(result, tmp_path):
    page = written(result, tmp_path)
    assert "were not at hand" in page
    assert "<img" not in page


def test_a_picture_that_cannot_be_read_is_said_in_its_card(tmp_path):
    root = write_benchmark(tmp_path / "data")
    result = evaluate_benchmark(SeesNothing(), MBeir(root), tasks=["dark_task4"])
    whole = (root / "mbeir_images/dark_red.png").read_bytes()
    (root / "mbeir_images/dark_red.png").write_bytes(whole[: len(whole) // 2])
    (root / "mbeir_images/dark_blue.png").unlink()
    page = written(result, tmp_path, MBeir(root))
    assert page.count("picture cannot be read") >= 2
    assert 'src=""' not in page


def test_the_same_result_gives_the_same_page_also_after_saving(result, data, tmp_path):
    result.save(tmp_path / "result.json")
    pages = [
        write_report(one, data, tmp_path / name).read_bytes()
        for one, name in ((result, "a.html"), (Result.load(tmp_path), "b.html"))
    ]
    assert pages[0] == pages[1]


@pytest.mark.parametrize(("folder", "what"), [("query", "Query"), ("cand_pool", "Candidate")])
def test_another_benchmark_is_refused(result, data, tmp_path, folder, what):
    root = write_benchmark(tmp_path / "other")
    for path in [*(root / folder).rglob("*.jsonl"), *(root / "qrels").rglob("*.txt")]:
        field = {"Query": r'("qid": "|^)(?=\d)', "Candidate": r'("did": "| 0 )(?=\d)'}[what]
        path.write_text(re.sub(field, r"\g<1>9", path.read_text(), flags=re.MULTILINE))
    with pytest.raises(ValueError, match=rf"{what} '.*' of .* is not in .*other. Pass the benchmark of this result"):
        write_report(result, MBeir(root), tmp_path / "report.html")


def frontier():
    points = [("float32", 64, 256, 0.80, 0.70), ("float32", 16, 64, 0.70, 0.58), ("int8", 64, 64, 0.79, 0.69)]
    points += [("binary", 64, 8, 0.60, 0.50), ("int8", 16, 16, 0.59, 0.51)]
    return [
        FrontierPoint(precision, dimension, pixels, size, local, union, 1.234, 0.0567)
        for pixels in (784, None)
        for precision, dimension, size, local, union in points
    ]


def test_the_frontier_joins_what_no_smaller_vector_reaches(mbeir, tmp_path):
    page = written(mbeir, tmp_path, frontier=frontier())
    lines = [attributes["points"] for tag, attributes in Page(page).found if tag == "polyline"][
        1:
    ]  # behind the weights'
    assert [len(line.split()) for line in lines] == [3, 3, 4, 4]
    assert ["float32", "64", "784", "256", "80.0", "70.0", "1.23", "0.057"] in Page(page).rows
    assert ["int8", "16", "–", "16", "59.0", "51.0", "1.23", "0.057"] in Page(page).rows
    for kind in ("float32", "int8", "binary"):
        assert page.count(f'<path class="{kind}"') == 1 + sum(one.precision == kind for one in frontier()) * 2


def test_bars_are_as_long_as_their_numbers_and_whiskers_as_their_intervals():
    marks = [Mark("ours", 0.5, (0.4, 0.6), "▲"), Mark("best", 0.25, note="B<M>25")]
    drawing = str(charts.bars("<t>", {"t → <i>": marks}, axis=[0, 1], lines=2))
    tags = Page(drawing).found
    widths = {tag[1]["class"]: float(tag[1]["width"]) for tag in tags if tag[0] == "rect"}
    assert widths == {"ours": charts.SPAN / 2, "best": charts.SPAN / 4}
    (whisker,) = [tag[1]["d"] for tag in tags if tag[1].get("class") == "whisker"]
    low, high = (float(end) for end in re.match(r"M([\d.]+),\S*H([\d.]+)m", whisker).groups())
    assert [low, high] == pytest.approx([charts.LEFT + charts.SPAN * share for share in (0.4, 0.6)], abs=0.06)
    assert ">50.0 ▲<" in drawing
    assert ">25.0 B&lt;M&gt;25<" in drawing
    assert "t → &lt;i&gt;" in drawing


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([0, 1], [0, 20, 40, 60, 80, 100]),
        ([0.31, 0.97], [20, 40, 60, 80, 100]),
        ([0.5], [50, 50.1]),
        ([0, 0], [0, 0.1]),
        ([-0.012, 0.011], [-2, -1, 0, 1, 2]),
    ],
)
def test_ticks_are_round_numbers_around_the_values(values, ticks):
    assert [100 * one for one in charts.axis_over(values)] == pytest.approx(ticks)


def test_the_interval_is_that_of_the_mean_over_queries(result):
    low, high = interval(result.tasks[0], MODEL, "local", "hit@5")
    assert low < np.mean(result.tasks[0].scores[MODEL]["local"].values["hit@5"]) <= high <= 1


def test_small_pictures_keep_their_bytes_and_large_ones_shrink(tmp_path):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "small.webp")
    Image.new("RGB", (900, 300), "red").save(tmp_path / "large.bmp")
    assert picture(tmp_path / "small.webp").startswith("data:image/webp;base64,")
    large = picture(tmp_path / "large.bmp")
    assert large.startswith("data:image/webp;base64,")
    assert len(large) < 1000 * PICTURE_MAX_PIXELS / 16
    assert picture(tmp_path / "none.png") == ""


def test_the_spread_shows_every_task_of_every_data_set(result, tmp_path):
    spread = {pool: [0.25, 0.75] for pool in result.pools}
    tasks = [replace(task, by_prompt=spread) for task in result.tasks]
    page = write_report(replace(result, tasks=tasks), None, tmp_path / "report.html").read_text(encoding="utf-8")
    for task in tasks:
        assert len(re.findall(rf'class="label"[^>]*>{task.dataset}: {task.type}<', page)) == 2


def test_a_model_that_wins_every_query_alike_has_its_page(result, tmp_path):
    comparison = replace(result.tasks[0].comparison, effect=None, first_score=1.0, second_score=0.0)
    tasks = [replace(result.tasks[0], comparison=comparison), *result.tasks[1:]]
    page = write_report(replace(result, tasks=tasks), None, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<td>+inf</td>" in page
