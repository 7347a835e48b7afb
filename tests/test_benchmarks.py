"""The programs of benchmarks/, run small: they end, subjects agree, no ratio is absurd. Never an absolute time."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAMS = Path(__file__).parents[1] / "benchmarks"
SMALL = {
    "encode.py": ("--items", "20", "--repetitions", "2", "--settings", "skewed"),
    "train_step.py": ("--rows", "8", "--chunk", "2", "--repetitions", "2"),
    "search.py": ("--rows", "400000", "--queries", "500", "--repetitions", "2", "-k", "20"),
    "rerank.py": ("--candidates", "8", "--generated", "1", "--repetitions", "2", "--kinds", "texts"),
    "cost_growth.py": ("--items", "300", "900", "--pools", "1000", "9000", "--repetitions", "1"),
    "startup.py": ("--repetitions", "1"),
    "gpu.py": ("--shapes", "2b", "--items", "8", "--tokens", "1024", "--repetitions", "1"),
    "choices.py": ("--items", "8", "--repetitions", "1"),
}

pytestmark = pytest.mark.benchmark


@pytest.fixture(scope="module")
def rows():
    """``rows(program)``: what it prints, run small, as the cells of every line of its tables."""
    done: dict[str, list[list[str]]] = {}

    def run(program):
        if program not in done:
            command = [sys.executable, str(PROGRAMS / program), *SMALL[program]]
            ended = subprocess.run(command, capture_output=True, text=True)
            assert ended.returncode == 0, ended.stderr
            lines = [line for line in ended.stdout.splitlines() if line.startswith("| ")]
            assert lines, ended.stdout
            done[program] = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]
        return done[program]

    return run


def number(cell):
    return float(re.match(r"-?[\d.,]+(e-\d+)?", cell)[0].replace(",", ""))


@pytest.mark.parametrize("program", SMALL)
def test_it_runs_small_and_prints_a_table(rows, program):
    assert all(len(row) == len(rows(program)[0]) or row[0] in ("", "a mapped store") for row in rows(program)[:3])


def test_ours_encodes_the_same_no_slower_than_the_peers_and_pads_less(rows):
    header, _, *found = rows("encode.py")
    column = {name: at for at, name in enumerate(header)}
    assert all(number(row[column["least cosine"]]) >= 0.9999 for row in found)
    for ours in (row for row in found if row[column["subject"]] == "umarvel_hf"):
        stock = next(row for row in found if row[0] == ours[0] and row[column["subject"]] == "sentence-transformers")
        assert number(ours[column["padding"]]) < number(stock[column["padding"]])
        if ours[column["type"]] == stock[column["type"]]:
            assert number(ours[column["stock ÷ subject"]]) > 0.9


def test_a_step_gives_the_same_gradients_no_slower(rows):
    header, _, *found = rows("train_step.py")
    assert number(found[0][header.index("stock ÷ subject")]) > 0.9
    losses = [number(row[header.index("loss")]) for row in found]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_re_ranking_is_faster_than_a_forward_per_pair_with_the_same_answers(rows):
    header, _, *found = rows("rerank.py")
    assert all(number(row[header.index("max. difference")]) < 1e-5 for row in found)
    assert all(number(row[header.index("times ours")]) > 1.5 for row in found[1:])


def test_search_holds_less_memory_than_faiss(rows):
    header, _, faiss, ours, *_ = rows("search.py")
    assert faiss[0].startswith("FAISS") and number(ours[header.index("of FAISS's")]) < 0.9
    assert number(ours[header.index("faster")]) > 0.3


def test_neither_encoding_nor_search_grows_faster_than_what_it_is_given(rows):
    slopes = [number(row[1]) for row in rows("cost_growth.py") if row[0] == "slope"]
    assert len(slopes) == 2 and all(one < 1.3 for one in slopes)
