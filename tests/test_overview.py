"""Results side by side: what is measured and what papers print stay apart; means are of whole sets; mteb's files."""

import json
import re

import pytest

from umarvel_hf.evaluation.overview import Column, read_results, sections
from umarvel_hf.evaluation.published import published, published_zero_shot
from umarvel_hf.evaluation.results import MBEIR_TASKS, MODEL, POOLS, PoolScore, Result, TaskResult
from umarvel_hf.evaluation.suites import ZERO_SHOT
from umarvel_hf.evaluation.zeroshot import rank_suite
from umarvel_hf.report import write_overview
from zero_shot import MMEB_TASKS, WRITERS, Angled


def zero_shot(tmp_path, suite, model, **options):
    root = tmp_path / "data" / suite
    encoder = Angled(root, WRITERS[suite](root))
    result = rank_suite(encoder, suite, root, **options).measure({"model": model})
    folder = tmp_path / model / suite
    result.save(folder / "result.json")
    return folder


def mbeir(tmp_path, model, tasks=tuple(MBEIR_TASKS), split="test", suite="m-beir"):
    """A result whose tasks score 1/2 on the local and 1/4 on the union pool."""
    hits = {"local": [1.0, 1.0, 0.0, 0.0], "union": [1.0, 0.0, 0.0, 0.0]}
    metrics = ("hit@1", "hit@5", "hit@10", "wrong_modality@10")
    scores = {MODEL: {pool: PoolScore(dict.fromkeys(metrics, hits[pool])) for pool in POOLS}}
    sizes, top = dict.fromkeys(POOLS, 9), dict.fromkeys(POOLS, [[]] * 4)
    found = [
        TaskResult(task.dataset, task.task_id, f"hit@{depth}", list("abcd"), sizes, scores, top)
        for task, depth in MBEIR_TASKS.items()
        if task in tasks
    ]
    result = Result(suite, found, [], {"model": model, "split": split}, {"queries": 4, "tasks": 16}, {})
    result.save(tmp_path / model / suite / "result.json")
    return tmp_path / model / suite


def mteb(folder, task, model="ours/a", split="test", **scores):
    folder.mkdir(parents=True, exist_ok=True)
    saved = {"task_name": task, "mteb_version": "2.26.24", "scores": {split: [scores]}}
    (folder / f"{task}.json").write_text(json.dumps(saved))
    (folder / "model_meta.json").write_text(json.dumps({"name": model}))
    return folder


def test_one_row_a_model_and_the_columns_of_the_papers(tmp_path):
    suites = [name for name in ZERO_SHOT if name not in ("mmeb", "vist", "coco5k")]
    folders = [zero_shot(tmp_path, name, model) for name in suites for model in ("a", "b")]
    image, video = sections(read_results(folders))
    for section, kind in ((image, "image"), (video, "video")):
        assert [column.key for column in section.columns] == published_zero_shot(kind).columns
        assert [row.model for row in section.measured] == ["a", "b"]
        assert all(row.scores.keys() == {column.key for column in section.columns} for row in section.measured)
    assert image.measured[0].scores["sugarcrepe", "SugarCrepe", "accuracy"] == pytest.approx(100 * 5 / 7)
    assert image.measured[0].scores["circo", "circo", "capped_map@5"] == pytest.approx(100 * 1.75 / 3)
    assert video.measured[0].scores["msvd", "msvd", "hit@1"] == pytest.approx(100 * 2 / 3, abs=1e-4)


def test_sets_that_no_paper_prints_follow_and_parts_stand_for_a_mean_that_is_not_whole(tmp_path):
    folders = [
        zero_shot(tmp_path, "vist", "a"),
        zero_shot(tmp_path, "mmeb", "a", tasks=MMEB_TASKS),
        zero_shot(tmp_path, "sugarcrepe", "a", tasks=["sugarcrepe_swap_att"]),
        zero_shot(tmp_path, "flickr30k", "a"),
    ]
    (section,) = sections(read_results(folders))
    titles = [(column.title, column.metric) for column in section.columns]
    assert titles == [
        ("Flickr30k t → i", "hit@1"), ("Flickr30k i → t", "hit@1"), ("VIST", "hit@1"),
        ("SugarCrepe swap_att", "accuracy"), ("MMEB ImageNet-1K", "accuracy"), ("MMEB OK-VQA", "accuracy"),
        ("MMEB NIGHTS", "accuracy"),
    ]  # fmt: skip


def test_mbeir_by_pool_with_an_average_only_of_all_sixteen(tmp_path):
    some = list(MBEIR_TASKS)[:3]
    local, union = sections(read_results([mbeir(tmp_path, "a"), mbeir(tmp_path, "b", some, split="val")]))
    assert (local.title, union.title) == ("M-BEIR, local pools", "M-BEIR, union pool")
    assert len(local.columns) == 17
    whole, part = local.measured
    assert set(whole.scores.values()) == {50.0} and set(union.measured[0].scores.values()) == {25.0}
    assert part.scores.keys() == {task.name for task in some}
    assert len(local.published) == len(published().rows["local"])
    assert "b was measured on split val, the rows of papers are of test." in local.notes
    assert local.notes[0] == published().about and not union.notes  # said once


def test_means_over_other_tasks_stand_in_other_columns(tmp_path):
    webqa = [task for task in MBEIR_TASKS if task.dataset == "webqa"]
    folders = [mbeir(tmp_path, "a", webqa, suite="emoji"), mbeir(tmp_path, "b", webqa[:1], suite="emoji")]
    (section,) = sections(read_results(folders))
    assert [(column.title, column.metric) for column in section.columns] == [
        ("webqa, local", "mean of 2"), ("webqa, union", "mean of 2"), ("webqa, local", "mean of 1"),
        ("webqa, union", "mean of 1"),
    ]  # fmt: skip
    assert [len(row.scores) for row in section.measured] == [2, 2] and not section.published


def test_published_rows_are_as_printed():
    image, video = published_zero_shot("image"), published_zero_shot("video")
    by_name = {row.model: row for row in image.rows["image"]}
    assert by_name["U-MARVEL Qwen2VL-7B"].scores["circo", "circo", "capped_map@5"] == 36.2
    assert ("circo", "circo", "capped_map@5") not in by_name["UniME"].scores
    assert {row.model for row in image.rows["image"] if row.reranked} == {
        "LamRA (rerank)", "U-MARVEL+ Qwen3VL-4B", "U-MARVEL+ Qwen2VL-7B",
    }  # fmt: skip
    assert {row.model: row for row in video.rows["video"]}["U-MARVEL+ Qwen2VL-7B"].scores[
        "msr-vtt", "msr-vtt", "hit@1"
    ] == 47.5
    for suite, name, metric in (*image.columns, *video.columns):
        own = ZERO_SHOT[suite]
        parts = own.means.get(name) or [name.removeprefix(suite).lstrip("_")]
        found = [task for task in own.tasks if task.part in parts]
        assert found and all(metric in task.metrics for task in found)


def test_of_mteb_the_score_to_read(tmp_path):
    folder = mteb(tmp_path / "m", "CIRRIT2IRetrieval", main_score=0.1, hit_rate_at_5=0.4, hit_rate_at_10=0.5)
    mteb(folder, "FashionIQIT2IRetrieval", main_score=0.1, hit_rate_at_5=0.4, hit_rate_at_10=0.5)
    mteb(folder, "STSBenchmark", split="dev", main_score=0.7)
    (section,) = sections(read_results([folder]))
    assert section.columns == [
        Column("CIRRIT2IRetrieval", "CIRRIT2IRetrieval", "hit_rate_at_5"),
        Column("FashionIQIT2IRetrieval", "FashionIQIT2IRetrieval", "hit_rate_at_10"),
        Column("STSBenchmark, dev", "STSBenchmark, dev", "main_score"),
    ]
    (row,) = section.measured
    assert [round(one) for one in row.scores.values()] == [40, 50, 70]
    assert not section.published


def test_of_mteb_every_split_and_the_mean_over_subsets(tmp_path):
    folder = mteb(tmp_path / "m", "X", main_score=0.2)
    scores = {"test": [{"main_score": 0.2}, {"main_score": 0.4, "other": True}], "dev": [{"main_score": 1}]}
    (folder / "X.json").write_text(json.dumps({"task_name": "X", "mteb_version": "2", "scores": scores}))
    (section,) = sections(read_results(folder))
    assert section.measured[0].scores == pytest.approx({"X": 30, "X, dev": 100})


def test_revisions_of_a_model_are_rows_of_their_own(tmp_path):
    first, second = (mteb(tmp_path / "m" / name, "A", main_score=0.1) for name in ("r1", "r2"))
    mteb(second, "B", main_score=0.9)
    (section,) = sections(read_results([tmp_path / "m"]))
    assert [(row.model, row.scores.keys()) for row in section.measured] == [
        (f"ours/a ({first})", {"A"}), (f"ours/a ({second})", {"A", "B"}),
    ]  # fmt: skip


@pytest.mark.parametrize("scores", [[], {"test": {"main_score": 1}}, {"test": [1]}, {"test": []}, {"test": [{}]}])
def test_a_broken_file_of_mteb_is_named(tmp_path, scores):
    (tmp_path / "X.json").write_text(json.dumps({"task_name": "X", "mteb_version": "2", "scores": scores}))
    (tmp_path / "model_meta.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"X\.json is no whole result of mteb"):
        read_results([tmp_path])


def test_a_part_of_a_set_is_said_to_be_one(tmp_path):
    (section,) = sections(read_results([zero_shot(tmp_path, "flickr30k", "a"), zero_shot(tmp_path, "genecis", "a")]))
    assert section.notes[-2:] == [
        "a was measured on 10 queries of flickr30k_t2i; the whole set has 5,000.",
        "a was measured on 2 queries of flickr30k_i2t; the whole set has 1,000.",
    ]


def test_what_cannot_stand_on_one_page_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty holds neither result\.json nor results of mteb"):
        read_results([tmp_path / "empty"])
    first = zero_shot(tmp_path, "circo", "a")
    second = tmp_path / "again/result.json"
    second.parent.mkdir()
    second.write_bytes((first / "result.json").read_bytes())
    with pytest.raises(ValueError, match=r"a result is given twice among .*circo"):
        read_results([first, first])
    (section,) = sections(read_results([first, second]))
    assert [row.model for row in section.measured] == [f"a ({first})", f"a ({second})"]
    folder = mteb(tmp_path / "m", "CIRRIT2IRetrieval", main_score=0.1)
    with pytest.raises(ValueError, match=r"CIRRIT2IRetrieval\.json has no hit_rate_at_5; it has main_score"):
        sections(read_results([folder]))
    mteb(tmp_path / "n", "X", ndcg=0.1)
    with pytest.raises(ValueError, match=r"X\.json is no whole result of mteb \(KeyError\('main_score'\)\)"):
        read_results([tmp_path / "n"])
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(ValueError, match=r"other\.json"):
        read_results([tmp_path / "other.json"])


def test_the_page_keeps_measured_and_published_rows_apart(tmp_path):
    folders = [
        mbeir(tmp_path, "ours<b>"),
        zero_shot(tmp_path, "circo", "ours<b>"),
        mteb(tmp_path / "m", "X", main_score=0.5),
    ]
    measured = read_results(folders)
    page = write_overview(measured, tmp_path / "page.html").read_text(encoding="utf-8")
    tables = re.findall(r"<table.*?</table>", page, re.DOTALL)
    assert len(tables) == len(sections(measured)) == 4
    for table, section in zip(tables, sections(measured), strict=True):
        ours, *papers = re.findall(r"<tbody>.*?</tbody>", table, re.DOTALL)
        assert ours.count('<tr class="ours"><th>▶') == ours.count("<tr") == len(section.measured)
        assert "ours&lt;b&gt;" in ours or "ours/a" in ours
        if section.published:
            assert "▶" not in papers[0] and "Published, not measured here" in papers[0]
            assert papers[0].count("<tr") == 1 + len(section.published)
    assert "<script" not in page and not re.search(r"(src|href)=", page)
