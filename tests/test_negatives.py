"""Tables of mined lists: whole or not there, cheap to open; and which negatives a row gets, counted by hand."""

import pickle
import random
import signal
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from colours import write_lines
from umarvel_hf.data import Pool
from umarvel_hf.negatives import (
    GROUP_ROWS,
    SCHEMA,
    Filters,
    MinedList,
    NegativeTable,
    Strategy,
    TooFewNegatives,
    select,
)


def scores(*values):
    return np.array(values, dtype=np.float32)


def short_list(number):
    return MinedList(f"1:{number}", (f"9:{number}",), scores(0.9), ("9:70", f"9:{number + 1}"), scores(0.5, 0.25))


FULL = MinedList(
    "1:7",
    ("9:1", "9:2"),
    scores(0.75, 0.5),
    ("9:3", "9:4", "9:5"),
    scores(0.7, 0.6, 0.5),
    scores(1.0, 0.25),
    scores(0.5, 0.125),
    scores(1.5, 0.75),
    scores(1.2, 0.725),
)


def fields(one):
    values = (getattr(one, name) for name in MinedList.__dataclass_fields__)
    return [value.tolist() if isinstance(value, np.ndarray) else value for value in values]


def test_what_was_written_is_read_in_the_same_order(tmp_path):
    lists = [short_list(number) for number in (300, *range(200))] + [FULL]
    lists[3] = MinedList("1:2", ("9:2",), scores(0.5), (), scores())
    lists.pop(8)  # another qid "1:7"
    table = NegativeTable.write(tmp_path / "table.parquet", iter(lists), {"depth": "2", "seed": "é"})
    assert table.facts == {"depth": "2", "seed": "é"} and NegativeTable.open(table.path).facts == table.facts
    assert len(table) == len(lists) and table.qids == [one.qid for one in lists]
    assert [fields(one) for one in table] == [fields(one) for one in lists]
    assert all(fields(table[one.qid]) == fields(one) for one in lists[::-3])
    assert table["1:7"].teacher_scores.dtype == np.float32 and table["1:300"].answers is None
    assert "1:7" in table and "1:999" not in table and 7 not in table
    with pytest.raises(KeyError, match=r"'1:999' is not among the 201 of .*table.parquet"):
        table["1:999"]


def test_an_open_table_can_be_sent_to_a_worker(tmp_path):
    table = NegativeTable.write(tmp_path / "table.parquet", [FULL], {})
    sent = pickle.dumps(table)
    assert len(sent) < 500 and fields(pickle.loads(sent)["1:7"]) == fields(FULL)
    assert NegativeTable.write(tmp_path / "empty.parquet", [], {}).qids == []


def test_other_files_are_refused(tmp_path):
    (tmp_path / "text").write_text("no table")
    with pytest.raises(ValueError, match="text is no Parquet file"):
        NegativeTable.open(tmp_path / "text")
    pq.write_table(pa.table({"qid": ["1:1"]}), tmp_path / "other.parquet")
    with pytest.raises(ValueError, match=r"other.parquet has columns \['qid'\]"):
        NegativeTable.open(tmp_path / "other.parquet")
    with pytest.raises(FileNotFoundError):
        NegativeTable.open(tmp_path / "nothing.parquet")


@pytest.mark.parametrize(
    ("column", "values", "found", "expected"),
    [
        ("qid", [7], "int64", "string"),
        ("dids", [[3, 4]], "list<.*: int64>", "list<.*: string>"),
        ("scores", [["0.5"]], "list<.*: string>", "list<.*: float>"),
        ("answers", [None], "null", "list<.*: float>"),
    ],
)
def test_a_column_of_another_type_is_refused(tmp_path, column, values, found, expected):
    table = pq.read_table(NegativeTable.write(tmp_path / "table.parquet", [FULL], {}).path)
    pq.write_table(table.set_column(table.schema.get_field_index(column), column, pa.array(values)), tmp_path / "other")
    with pytest.raises(ValueError, match=rf"other: column '{column}' is {found}, in mined lists {expected}\. Mine"):
        NegativeTable.open(tmp_path / "other")


def test_a_writer_that_fails_leaves_the_table_that_was_there(tmp_path):
    path = tmp_path / "table.parquet"
    NegativeTable.write(path, [FULL], {})

    def failing():
        yield from map(short_list, range(1000))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        NegativeTable.write(path, failing(), {})
    assert NegativeTable.open(path).qids == ["1:7"] and list(tmp_path.iterdir()) == [path]


WRITE = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from test_negatives import short_list
from umarvel_hf.negatives import NegativeTable

def lists():
    yield from map(short_list, range(1000))
    os.kill(os.getpid(), signal.SIGKILL)

NegativeTable.write(sys.argv[2], lists(), {})
"""


def test_a_writer_that_is_killed_leaves_no_table(tmp_path):
    path = tmp_path / "table.parquet"
    tests = str(__file__).rpartition("/")[0]
    done = subprocess.run([sys.executable, "-c", WRITE, tests, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL and not path.exists()
    assert len(NegativeTable.write(path, map(short_list, range(3)), {})) == 3


OPEN = """
import random, resource, sys, time
from umarvel_hf.negatives import NegativeTable

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

before, start = peak(), time.perf_counter()
table = NegativeTable.open(sys.argv[1])
opened, names = time.perf_counter(), [f"1:{random.randrange(len(table))}" for _ in range(200)]
found = [table[name].qid for name in names]
print(peak() - before, opened - start, (time.perf_counter() - opened) / 200, found == names)
"""


def test_a_table_of_200_000_lists_costs_little_memory_and_is_read_anywhere_at_once(tmp_path):
    count, path = 200_000, str(tmp_path / "table.parquet")
    values = {pa.string(): np.array(["9:1", "9:23456"] * count), pa.float32(): np.zeros(2 * count, dtype=np.float32)}
    columns = [pa.array([f"1:{number}" for number in range(count)])]  # written at once, which takes a tenth of the time
    for field in list(SCHEMA)[1:]:
        items = pa.array(values[field.type.value_type], field.type.value_type)
        columns.append(pa.ListArray.from_arrays(pa.array(range(0, 2 * count + 1, 2), pa.int32()), items))
    pq.write_table(pa.Table.from_arrays(columns, SCHEMA.names), path, row_group_size=GROUP_ROWS, use_dictionary=False)
    done = subprocess.run([sys.executable, "-c", OPEN, path], check=True, capture_output=True, text=True)
    megabytes, opening, reading, right = done.stdout.split()
    assert float(megabytes) < 150 and float(opening) < 3 and float(reading) < 0.02 and right == "True"


MODALITIES = {"text": (True, False), "image": (False, True), "image,text": (True, True)}


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """Twelve candidates, 9:0 to 9:11, modalities by turns; 9:10 and 9:11 have the content of 9:1 and 9:2."""
    root = tmp_path_factory.mktemp("pool")
    lines = []
    for number in range(12):
        shown = number if number < 10 else number - 9
        modality = list(MODALITIES)[shown % 3]
        text, image = MODALITIES[modality]
        content = {"txt": f"text {shown}" if text else None, "img_path": f"{shown}.png" if image else None}
        lines.append({"did": f"9:{number}", **content, "modality": modality})
    write_lines(root / "pool.jsonl", lines)
    return Pool(root / "pool.jsonl", root)


# The positives are 9:1 (an image, 0.8) and 9:4 (an image, 0.6). Modalities of the list: text, image,text, text, image,
# image,text, text, image,text.
LIST = MinedList(
    "1:1",
    ("9:1", "9:4"),
    scores(0.8, 0.6),
    ("9:0", "9:2", "9:3", "9:7", "9:5", "9:6", "9:8"),
    scores(0.9, 0.79, 0.75, 0.7, 0.5, 0.3, -0.1),
    answers=scores(0.1, 0.9, 0.2, 0.6),
)
RIGHT = "9:7"  # the only image in the list, and in the pool besides the positives and a copy


def chosen(pool, kind="top", count=3, mined=LIST, seed=0, filters=None, **strategy):
    return select(mined, Strategy(kind, count, **strategy), Filters(**(filters or {})), random.Random(seed), pool)


def test_top_takes_the_best(pool):
    assert chosen(pool) == ["9:0", "9:2", "9:3"]
    assert chosen(pool, count=7) == list(LIST.dids)


@pytest.mark.parametrize(
    ("filters", "left"),
    [
        ({}, "0 2 3 7 5 6 8"),
        ({"relative_margin": 0.05}, "3 7 5 6 8"),  # at most 0.76
        ({"relative_margin": 0.0}, "2 3 7 5 6 8"),
        ({"absolute_margin": 0.1}, "7 5 6 8"),  # at most 0.7
        ({"max_score": 0.79}, "2 3 7 5 6 8"),
        ({"veto": 0.5}, "0 3 5 6 8"),  # 9:5 and after it were not judged
        ({"relative_margin": 0.05, "veto": 0.15, "max_score": 0.4}, "6 8"),
    ],
)
def test_each_filter_removes_what_it_says(pool, filters, left):
    expected = [f"9:{number}" for number in left.split()]
    mined = MinedList(LIST.qid, LIST.positives, LIST.positive_scores, LIST.dids, LIST.scores, answers=LIST.answers)
    assert chosen(pool, count=len(expected), mined=mined, filters=filters) == expected


def test_margins_agree_with_sentence_transformers_also_below_zero():
    mined = MinedList("q", ("p",), scores(-0.5), ("a", "b"), scores(-0.52, -0.6))
    assert Filters(relative_margin=0.1).removed(mined)["relative_margin"].tolist() == [True, False]  # at most -0.55
    assert Filters(absolute_margin=0.05).removed(mined)["absolute_margin"].tolist() == [True, False]


def test_a_false_negative_with_the_positives_vector_is_removed_by_a_margin(pool):
    mined = MinedList("1:1", ("9:1",), scores(0.8), ("9:3", "9:5"), scores(0.8, 0.6))
    assert chosen(pool, count=1, mined=mined) == ["9:3"]
    assert chosen(pool, count=1, mined=mined, filters={"relative_margin": 0.05}) == ["9:5"]
    for seed in range(30):
        drawn = chosen(pool, "random", 8, mined=mined, seed=seed, filters={"relative_margin": 0.05})
        assert "9:3" not in drawn and len(set(drawn)) == 8


def test_a_window_is_drawn_from_its_ranks_after_the_filters(pool):
    draws = [chosen(pool, "window", 2, seed=seed, window=(1, 4), filters={"max_score": 0.8}) for seed in range(60)]
    assert all(len(set(one)) == 2 for one in draws)
    assert {did for one in draws for did in one} == {"9:3", "9:7", "9:5"}  # 9:0 is filtered, 9:2 skipped
    assert chosen(pool, "window", 2, seed=3, window=(1, 4)) == chosen(pool, "window", 2, seed=3, window=(1, 4))
    assert len({tuple(sorted(one)) for one in draws}) == 3


def test_random_draws_from_the_pool_without_positives_and_their_copies(pool):
    draws = [chosen(pool, "random", 3, seed=seed) for seed in range(80)]
    assert all(len(set(one)) == 3 for one in draws)
    assert {did for one in draws for did in one} == set(pool) - {"9:1", "9:4", "9:10"}  # 9:10 is a copy of 9:1
    assert chosen(pool, "random", 3, seed=3) == chosen(pool, "random", 3, seed=3)
    assert sorted(chosen(pool, "random", 9)) == sorted(set(pool) - {"9:1", "9:4", "9:10"})


def test_a_quota_of_wrong_modality_is_kept(pool):
    assert chosen(pool, count=3, wrong_modality=2) == [RIGHT, "9:0", "9:2"]
    assert chosen(pool, count=2, wrong_modality=2) == ["9:0", "9:2"]
    assert set(chosen(pool, "window", 3, wrong_modality=2, window=(0, 3))) <= {RIGHT, "9:0", "9:2", "9:3"}
    for seed in range(20):
        right, wrong = chosen(pool, "random", 2, seed=seed, wrong_modality=1)
        assert right == RIGHT and pool[wrong].modality != "image"


def test_too_few_negatives_are_told_with_what_each_filter_removed(pool):
    expected = r"query '1:1': 6 negatives, 0 of them .*5 \+ 0 found \(top; 7 mined, relative_margin removes 2\)"
    with pytest.raises(TooFewNegatives, match=expected):
        chosen(pool, count=6, filters={"relative_margin": 0.05})
    with pytest.raises(TooFewNegatives, match=r"1 \+ 1 found"):
        chosen(pool, count=3, wrong_modality=1)
    with pytest.raises(TooFewNegatives, match=r"9 \+ 0 found \(random"):
        chosen(pool, "random", 10)
    with pytest.raises(TooFewNegatives, match=r"2 \+ 0 found \(window"):
        chosen(pool, "window", 3, window=(5, 60))
    assert issubclass(TooFewNegatives, ValueError)


def test_what_contradicts_itself_is_refused(pool):
    with pytest.raises(ValueError, match=r"veto is 0.5, but no re-ranker has judged the list of query '1:2'"):
        chosen(pool, mined=short_list(2), filters={"veto": 0.5})
    with pytest.raises(ValueError, match=r"query '1:50': its list was mined from another pool than .*pool.jsonl"):
        chosen(pool, mined=short_list(50))
    for kind, count, window, wrong in (
        ("last", 1, None, 0),
        ("window", 1, None, 0),
        ("top", 1, (0, 5), 0),
        ("window", 1, (5, 5), 0),
        ("top", 0, None, 0),
        ("top", 2, None, 3),
    ):
        with pytest.raises(ValueError, match=r"strategy is|wrong modality"):
            Strategy(kind, count, window, wrong)
