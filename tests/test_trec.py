"""Run files and qrels: written, read, and refused line by line."""

import pytest

from umarvel_hf.evaluation.metrics import ranked_ids
from umarvel_hf.evaluation.trec import read_qrels, read_run, write_qrels, write_run

RUN = """\
9:1 Q0 1:é 1 0.500000 ours
9:1 Q0 1:b 2 0.250000 ours
9:1 Q0 1:a 3 0.250000 ours
9:2 Q0 1:a 1 -1.000000 ours
"""
QRELS = "9:1 0 1:a 2\n9:1 0 1:b 0\n9:2 0 1:a -1\n"


def written(path, content):
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_a_run_is_written_in_the_order_in_which_it_is_read(tmp_path):
    qids, dids = ["9:1", "9:2", "9:3"], [["1:a", "1:é", "1:b"], ["1:a"], []]
    write_run(tmp_path / "run.txt", qids, dids, [[0.25000049, 0.5, 0.25], [-1], []], "ours")
    assert (tmp_path / "run.txt").read_text(encoding="utf-8") == RUN
    assert [path.name for path in tmp_path.iterdir()] == ["run.txt"]


def test_reading_then_writing_a_run_is_the_identity(tmp_path):
    run = read_run(written(tmp_path / "run.txt", RUN))
    assert run == {"9:1": {"1:é": 0.5, "1:b": 0.25, "1:a": 0.25}, "9:2": {"1:a": -1}}
    write_run(
        tmp_path / "again.txt", run, map(list, run.values()), (list(one.values()) for one in run.values()), "ours"
    )
    assert (tmp_path / "again.txt").read_bytes() == RUN.encode()


def test_scores_decide_the_order_not_ranks_or_lines(tmp_path):
    lines = ["q Q0 a 1 0.1 t", "q Q0 b 2 0.9 t", "p Q0 x 1 1 t", "q Q0 c 3 0.9 t", "q Q0 d 9 1e-1\tt\r"]
    run = read_run(written(tmp_path / "run.txt", "\n".join(lines)))
    assert {qid: list(scores) for qid, scores in run.items()} == {"q": ["c", "b", "d", "a"], "p": ["x"]}
    assert list(run["q"]) == ranked_ids(run["q"])


def test_reading_then_writing_qrels_is_the_identity(tmp_path):
    qrels = read_qrels(written(tmp_path / "qrels.txt", QRELS))
    assert qrels == {"9:1": {"1:a": 2, "1:b": 0}, "9:2": {"1:a": -1}}
    write_qrels(tmp_path / "again.txt", qrels)
    assert (tmp_path / "again.txt").read_bytes() == QRELS.encode()


def test_m_beirs_fifth_column_is_read(tmp_path):
    assert read_qrels(written(tmp_path / "qrels.txt", "9:1 0 1:a 1 0\n9:1 0 1:b 1 0\n")) == {
        "9:1": {"1:a": 1, "1:b": 1}
    }


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q Q0 b 2 0.5", "2: 5 columns, where 6 are needed: 'qid Q0 did rank score tag'"),
        ("q Q0 b c 2 0.5 t", "2: 7 columns"),
        ("", "2: 0 columns"),
        ("q Q0 b 2 high t", "2: score 'high' of 'b' is no finite number"),
        ("q Q0 b 2 nan t", "2: score 'nan' of 'b' is no finite"),
        ("q Q0 b 2 -inf t", "2: score '-inf' of 'b' is no finite"),
        ("q Q0 a 2 0.5 t", "2: query 'q' has 'a' twice"),
        (b"q Q0 \xff 2 0.5 t", "2: not UTF-8"),
    ],
)
def test_a_bad_line_of_a_run_is_named(tmp_path, line, message):
    line = line.encode() if isinstance(line, str) else line
    path = written(tmp_path / "run.txt", b"q Q0 a 1 1.0 t\n" + line + b"\n")
    with pytest.raises(ValueError, match=f"run.txt:{message}"):
        read_run(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q 0 b", "2: 3 columns, where 4 are needed"),
        ("q 0 b 1 0 0", "2: 6 columns"),
        ("q 0 b 1.5", "2: relevance '1.5' of 'b' is no integer"),
        ("q 0 a 1", "2: query 'q' has 'a' twice"),
        (b"q 0 \xff 1", "2: not UTF-8"),
    ],
)
def test_a_bad_line_of_qrels_is_named(tmp_path, line, message):
    line = line.encode() if isinstance(line, str) else line
    path = written(tmp_path / "qrels.txt", b"q 0 a 1\n" + line + b"\n")
    with pytest.raises(ValueError, match=f"qrels.txt:{message}"):
        read_qrels(path)


@pytest.mark.parametrize("read", [read_run, read_qrels])
def test_an_empty_file_is_refused(tmp_path, read):
    with pytest.raises(ValueError, match=r"empty\.txt:1: the file is empty"):
        read(written(tmp_path / "empty.txt", ""))


@pytest.mark.parametrize(
    ("qids", "dids", "scores", "tag", "message"),
    [
        (["q 1"], [["a"]], [[1]], "t", "'q 1' is empty or holds white space"),
        (["q"], [["a\u00a0b"]], [[1]], "t", r"'a\\xa0b' is empty or holds white space"),
        (["q"], [[""]], [[1]], "t", "'' is empty"),
        (["q"], [["a"]], [[1]], "", "'' is empty"),
        (["q"], [["a", "a"]], [[1, 2]], "t", "Query 'q' has 'a' twice"),
        (["q", "q"], [["a"], ["b"]], [[1], [2]], "t", "Query 'q' comes twice"),
        (["q"], [["a"]], [[-float("inf")]], "t", "Query 'q': score -inf of 'a' is not finite"),
        (["q"], [["a", "b"]], [[1]], "t", "shorter"),
        (["q", "p"], [["a"]], [[1]], "t", "shorter"),
    ],
)
def test_what_no_reader_could_read_is_not_written(tmp_path, qids, dids, scores, tag, message):
    written(tmp_path / "run.txt", RUN)
    with pytest.raises(ValueError, match=message):
        write_run(tmp_path / "run.txt", qids, dids, scores, tag)
    assert (tmp_path / "run.txt").read_bytes() == RUN.encode()  # the old file stands
    with pytest.raises(ValueError, match="white space"):
        write_qrels(tmp_path / "qrels.txt", {"a b": {"c": 1}})


def test_a_run_is_written_as_its_queries_come(tmp_path):
    alive = []

    def lists():
        for at in range(1000):
            alive.append(at - (tmp_path / "run.txt.partial").stat().st_size // 1000)
            yield [f"{at}:{did:020d}" for did in range(50)]

    write_run(tmp_path / "run.txt", (f"q{at}" for at in range(1000)), lists(), ([0.5] * 50 for _ in range(1000)), "t")
    assert max(alive) < 30  # a query has over 2 kB: less than a buffer is held
    assert len(read_run(tmp_path / "run.txt")) == 1000
