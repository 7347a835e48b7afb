"""Two results compared, task by task: refusals, table, JSON, plot."""

import json
import re
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest

from umarvel_hf.evaluation.comparison import compare_results, plot
from umarvel_hf.evaluation.results import PoolScore, Result, TaskResult
from umarvel_hf.evaluation.significance import Comparison

QIDS = [f"9:{at}" for at in range(40)]
LOW, HIGH = [0.0] * 40, [1.0] * 30 + [0.0] * 10


def task(dataset, task_id, hits, **changes):
    scores = {
        system: {pool: PoolScore({"hit@5": hits, "hit@1": LOW}) for pool in ("local", "union")}
        for system in ("model", "re-ranked")
    }
    sizes = {"local": 100, "union": 300}
    return replace(TaskResult(dataset, task_id, "hit@5", QIDS, sizes, scores, {}), **changes)


def result(*tasks, suite="m-beir", split="test"):
    return Result(suite, list(tasks), [], {"split": split}, {}, {})


def test_results_are_compared_over_the_tasks_that_both_have():
    first = result(task("mscoco", 0, HIGH), task("cirr", 7, LOW), task("nights", 4, LOW), task("oven", 6, LOW))
    second = result(task("edis", 2, LOW), task("nights", 4, HIGH), task("cirr", 7, LOW), task("mscoco", 0, LOW))
    found = compare_results(first, second, names=("new", "old"))
    assert [(one.name, one.verdict) for one in found.comparisons] == [
        ("mscoco_task0", "better"),
        ("cirr_task7", "no difference shown"),
        ("nights_task4", "worse"),
    ]
    assert (found.only_first, found.only_second) == (["oven_task6"], ["edis_task2"])
    assert found.comparisons[0].p_holm == pytest.approx(3 * found.comparisons[0].p_value)
    assert (found.comparisons[0].first_score, found.comparisons[0].second_score) == (0.75, 0)
    assert compare_results(first, second, names=("new", "old")) == found


def test_table_and_json_hold_everything():
    found = compare_results(result(task("mscoco", 0, HIGH), task("oven", 6, LOW)), result(task("mscoco", 0, LOW)))
    lines = found.table().splitlines()
    assert lines[0].split()[:6] == ["task", "metric", "queries", "first", "second", "points"]
    assert re.match(r"mscoco_task0  R@5 +40 +75\.0 +0\.0 +\+75\.0 +\[\+6\d\.\d, \+8\d\.\d\] +\+1\.71 +30 +0", lines[1])
    assert re.search(r"better, p 0\.000\d$", lines[1])
    assert "Only in first, not compared: oven_task6." in lines
    assert lines[-1].startswith("Of 1 tasks first is better than second on 1, worse on 0; on 0 no difference is shown")
    assert found.table().isascii()
    saved = json.loads(found.as_json())
    assert saved["only_first"] == ["oven_task6"]
    assert [Comparison(**one) for one in saved["comparisons"]] == found.comparisons


def test_pool_system_and_metric_can_be_chosen():
    first, second = result(task("mscoco", 0, HIGH)), result(task("mscoco", 0, LOW))
    found = compare_results(first, second, metric="hit@1", pool="union", system="re-ranked")
    assert (found.pool, found.system, found.comparisons[0].metric) == ("union", "re-ranked", "hit@1")
    assert found.comparisons[0].p_value == 1
    for wrong, message in (
        ({"system": "BM25"}, "first: mscoco_task0 has no system 'BM25'; there is model, re-ranked"),
        ({"pool": "global"}, "no pool 'global'; there is local, union"),
        ({"metric": "map"}, "'map' was not measured; measured are hit@5, hit@1"),
    ):
        with pytest.raises(ValueError, match=message):
            compare_results(first, second, **wrong)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (result(task("mscoco", 0, LOW), suite="emoji"), "suite: 'm-beir' and 'emoji'"),
        (result(task("mscoco", 0, LOW), split="val"), "split: 'test' and 'val'"),
        (result(task("mscoco", 3, LOW)), r"No task in common: \['mscoco_task0'\] and \['mscoco_task3'\]"),
        (
            result(task("mscoco", 0, LOW, pool_sizes={"local": 99, "union": 300})),
            "mscoco_task0: size of the local pool: 100 and 99",
        ),
        (result(task("mscoco", 0, LOW, qids=QIDS[1:])), "mscoco_task0: number of queries: 40 and 39"),
        (result(task("mscoco", 0, LOW, qids=[*QIDS[:-1], "9:x"])), "mscoco_task0: query 40: '9:39' and '9:x'"),
    ],
)
def test_what_cannot_be_compared_is_refused_with_both_values(second, message):
    with pytest.raises(ValueError, match=message):
        compare_results(result(task("mscoco", 0, HIGH)), second)


def shown(name, difference, p_holm):
    scores = {"first_score": 0.5 + difference, "second_score": 0.5}
    interval = {"low": difference - 0.04, "high": difference + 0.03}
    counts = {"queries": 9, "wins": 5, "losses": 4}
    systems = {"first": "<new>", "second": "old & slow"}
    return Comparison(
        name=name, metric="hit@5", **systems, **scores, **interval, **counts, effect=0.1, p_value=0.01, p_holm=p_holm
    )


def test_the_plot_is_an_svg_with_a_symbol_for_every_verdict():
    found = plot([shown("mscoco_task0", 0.1, 0.01), shown("cirr_task7", -0.1, 0.02), shown("oven_task6", 0.01, 1.0)])
    root = ElementTree.fromstring(found)
    space = {"svg": "http://www.w3.org/2000/svg"}
    assert root.find("svg:title", space).text == "<new> against old & slow"
    kinds = [one.get("class") for one in root.iterfind("svg:g", space)]
    assert kinds == ["better", "worse", "none"] * 2  # the rows, then the key
    marks = [one.find("svg:path", space).get("d") for one in root.iterfind("svg:g", space)]
    assert len(set(marks)) == 3 and marks[:3] == marks[3:]
    texts = [one.text for one in root.iterfind("svg:text", space)]
    assert {"mscoco_task0", "R@5", "+10.0 [+6.0, +13.0]", "-10.0 [-14.0, -7.0]", "0", "-20", "+20"} <= set(texts)
    assert "http" not in found.replace(space["svg"], "")


def test_intervals_stand_where_the_scale_says():
    root = ElementTree.fromstring(plot([shown("mscoco_task0", 0.1, 0.01)]))
    space = {"svg": "http://www.w3.org/2000/svg"}
    x = {one.text: float(one.get("x")) for one in root.iterfind("svg:text[@class='soft middle']", space)}
    line = root.find("svg:g/svg:line", space)
    expected = np.interp([6, 13], [0, 15], [x["0"], x["+15"]])
    assert [float(line.get("x1")), float(line.get("x2"))] == pytest.approx(expected, abs=0.1)


def test_no_difference_at_all_and_no_comparison():
    same = plot([replace(shown("a", 0.0, 1.0), low=0.0, high=0.0)])
    assert "+0.0 [+0.0, +0.0]" in same
    with pytest.raises(ValueError, match="no comparison to plot"):
        plot([])
