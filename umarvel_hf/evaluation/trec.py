"""TREC's two text formats, read and written: runs (who found what) and qrels (what is right)."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from umarvel_hf.evaluation.metrics import ranked_ids
from umarvel_hf.records import decoded
from umarvel_hf.store import whole_file

RUN = "qid Q0 did rank score tag"
QRELS = "qid 0 did relevance"

Value = TypeVar("Value", int, float)


def read_run(path: str | Path) -> dict[str, dict[str, float]]:
    """Scores by qid and did, best first; the order is that of the scores, whatever the column of ranks says."""
    run: dict[str, dict[str, float]] = {}
    for where, (qid, _, did, _, score, _) in _rows(path, RUN):
        try:
            value = float(score)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise ValueError(f"{where}: score {score!r} of {did!r} is no finite number.")
        _add(run.setdefault(qid, {}), did, value, f"{where}: query {qid!r}")
    return {qid: {did: scores[did] for did in ranked_ids(scores)} for qid, scores in run.items()}


def write_run(
    path: str | Path,
    qids: Iterable[str],
    dids: Iterable[Sequence[str]],
    scores: Iterable[Sequence[float]],
    tag: str,
) -> None:
    """Write a run, whole or not at all, one query at a time; generators are welcome.

    Scores are printed with six decimals, and the answers of a query stand in the order in which they will be read.

    Args:
        tag: Name of the run, without white space.
    """
    _write(path, _run_lines(qids, dids, scores, tag))


def read_qrels(path: str | Path) -> dict[str, dict[str, int]]:
    """Relevance by qid and did, in the order of the file. M-BEIR's fifth column, the task, is not kept."""
    qrels: dict[str, dict[str, int]] = {}
    for where, (qid, _, did, relevance, *_) in _rows(path, QRELS, optional=1):
        try:
            value = int(relevance)
        except ValueError as error:
            raise ValueError(f"{where}: relevance {relevance!r} of {did!r} is no integer.") from error
        _add(qrels.setdefault(qid, {}), did, value, f"{where}: query {qid!r}")
    return qrels


def write_qrels(path: str | Path, qrels: Mapping[str, Mapping[str, int]]) -> None:
    """Write relevance by qid and did in TREC's four columns, whole or not at all."""
    judgements = ((qid, did, relevance) for qid, answers in qrels.items() for did, relevance in answers.items())
    _write(path, (f"{_column(qid)} 0 {_column(did)} {relevance:d}\n" for qid, did, relevance in judgements))


def _run_lines(
    qids: Iterable[str], dids: Iterable[Sequence[str]], scores: Iterable[Sequence[float]], tag: str
) -> Iterator[str]:
    end = f"{_column(tag)}\n"
    seen: set[str] = set()
    for qid, found, values in zip(qids, dids, scores, strict=True):
        if qid in seen:
            raise ValueError(f"Query {qid!r} comes twice. A run holds one list per query.")
        seen.add(qid)
        answers: dict[str, float] = {}
        for did, value in zip(found, values, strict=True):
            if not math.isfinite(value):
                raise ValueError(f"Query {qid!r}: score {value} of {did!r} is not finite. Leave the answer out.")
            _add(answers, did, round(float(value), 6), f"Query {qid!r}")
        start = f"{_column(qid)} Q0"
        for rank, did in enumerate(ranked_ids(answers), start=1):
            yield f"{start} {_column(did)} {rank} {answers[did]:.6f} {end}"


def _add(answers: dict[str, Value], did: str, value: Value, where: str) -> None:
    if did in answers:
        raise ValueError(f"{where} has {did!r} twice. Keep one of them.")
    answers[did] = value


def _column(value: str) -> str:
    if value.split() != [value]:
        raise ValueError(f"{value!r} is empty or holds white space, which separates TREC's columns. Rename it.")
    return value


def _rows(path: str | Path, form: str, optional: int = 0) -> Iterator[tuple[str, list[str]]]:
    """Yield ``file:line`` and the columns of every line."""
    path, number, needed = Path(path), 0, len(form.split())
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            columns = decoded(path, number, line).split()
            if not needed <= len(columns) <= needed + optional:
                raise ValueError(f"{path}:{number}: {len(columns)} columns, where {needed} are needed: {form!r}.")
            yield f"{path}:{number}", columns
    if not number:
        raise ValueError(f"{path}:1: the file is empty; it needs lines of the form {form!r}.")


def _write(path: str | Path, lines: Iterable[str]) -> None:
    with whole_file(Path(path)) as file:
        file.writelines(line.encode() for line in lines)
