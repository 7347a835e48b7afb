"""Teacher scores: by hand, part by part, and what they are refused for."""

import logging

import numpy as np
import pytest

from colours import write_benchmark, write_training_split
from umarvel_hf import teaching
from umarvel_hf.data import MBeir
from umarvel_hf.negatives import MinedList, NegativeTable
from umarvel_hf.reranking import load_reranker, reranker_query
from umarvel_hf.teaching import score_table


class Judge:
    """Answers by query and candidate; gives up when it was called so often."""

    def __init__(self, calls: int = 10**9) -> None:
        self.calls, self.pairs = calls, []

    def predict(self, inputs, *, show_progress_bar=None):
        if not self.calls:
            raise KeyboardInterrupt
        self.calls -= 1
        self.pairs += inputs
        return np.array([self.answer(*pair) for pair in inputs], dtype=np.float32)

    def answer(self, query, candidate):
        return (len(str(query)) * 7 + len(str(candidate)) * 3) % 11 / 10


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    return MBeir(write_training_split(write_benchmark(tmp_path_factory.mktemp("colours"))))


@pytest.fixture(scope="module")
def table(benchmark, tmp_path_factory):
    """Of each of the 18 queries, four wrong candidates with drawn scores."""
    dids, numbers, lists = list(benchmark.union_pool("train")), np.random.default_rng(0), []
    for query in benchmark.train_queries():
        wrong = [did for did in numbers.permutation(dids).tolist() if did not in query.positives][:4]
        scores = np.sort(numbers.uniform(-1, 1, 4))[::-1].astype(np.float32)
        right = numbers.uniform(-1, 1, len(query.positives)).astype(np.float32)
        lists.append(MinedList(query.qid, query.positives, right, tuple(wrong), scores))
    return NegativeTable.write(tmp_path_factory.mktemp("table") / "local.parquet", lists, {"seed": "3"})


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(teaching, "PART", 5)  # four parts


def test_a_teacher_score_is_twice_the_weighted_mean_of_cosine_and_answer(benchmark, table, tmp_path):
    judge, pool = Judge(), benchmark.union_pool("train")
    scored = score_table(table, judge, benchmark, top=3, weight=0.7, out=tmp_path / "scored.parquet")
    assert scored.qids == table.qids
    asked = {}
    for query, mined, one in zip(benchmark.train_queries(), table, scored, strict=True):
        assert (one.positives, one.dids, one.scores.tolist()) == (mined.positives, mined.dids, mined.scores.tolist())
        prompts = benchmark.prompts(query, pool[mined.positives[0]].modality)
        by_hand = []
        for prompt in prompts:
            item = reranker_query(query, prompt)
            by_hand.append([judge.answer(item, pool[did].item) for did in (*mined.positives, *mined.dids[:3])])
        answers = [*one.positive_answers.tolist(), *one.answers.tolist()]
        chosen = [hand for hand in by_hand if answers == pytest.approx(hand)]
        assert chosen
        asked[one.qid] = prompts[by_hand.index(chosen[0])]
        teachers = [*one.positive_teacher_scores.tolist(), *one.teacher_scores.tolist()]
        cosines = [*mined.positive_scores.tolist(), *mined.scores.tolist()[:3]]
        assert teachers == pytest.approx(
            [2 * (cos + 0.7 * said) / 1.7 for cos, said in zip(cosines, chosen[0], strict=True)]
        )
    assert len(judge.pairs) == sum(len(one.positives) + 3 for one in table)
    first = [prompt for qid, prompt in asked.items() if qid.startswith("1:") and int(qid[2:]) < 10]
    assert len(set(first)) == 2  # both ways of asking for a picture are drawn


def test_what_made_the_table_stands_in_it(benchmark, table, tmp_path):
    scored = score_table(table, Judge(), benchmark, top=50, weight=1, out=tmp_path / "scored.parquet")
    facts = dict(scored.facts)
    assert len(facts.pop("mined")) == 16
    assert facts == {"seed": "3", "reranker": "Judge", "top": "50", "weight": "1"}
    assert [len(one.answers) for one in scored] == [4] * 18


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_without_a_weight_cosines_are_left_and_with_one_of_1_the_sum(weight, benchmark, table, tmp_path):
    scored = score_table(table, Judge(), benchmark, top=2, weight=weight, out=tmp_path / "scored.parquet")
    for mined, one in zip(table, scored, strict=True):
        by_hand = mined.scores[:2] + one.answers if weight else 2 * mined.scores[:2]
        assert one.teacher_scores == pytest.approx(by_hand)
        by_hand = mined.positive_scores + one.positive_answers if weight else 2 * mined.positive_scores
        assert one.positive_teacher_scores == pytest.approx(by_hand)


def test_broken_off_anywhere_it_goes_on_to_the_same_file(benchmark, table, tmp_path, caplog):
    whole = tmp_path / "whole.parquet"
    score_table(table, Judge(), benchmark, top=3, weight=0.7, out=whole)
    for calls in range(4):
        out, first = tmp_path / f"{calls}.parquet", Judge(calls)
        with pytest.raises(KeyboardInterrupt):
            score_table(table, first, benchmark, top=3, weight=0.7, out=out)
        assert not out.exists() and len(list(tmp_path.glob(f"{calls}.parquet.parts/*.parquet"))) == calls
        rest = Judge()
        with caplog.at_level(logging.INFO):
            score_table(table, rest, benchmark, top=3, weight=0.7, out=out)
        assert len(first.pairs) + len(rest.pairs) == sum(len(one.positives) + 3 for one in table)
        assert out.read_bytes() == whole.read_bytes() and not (tmp_path / f"{calls}.parquet.parts").exists()
    assert f"{out}: part 4 of 4 is judged" in caplog.messages
    idle = Judge(0)
    score_table(table, idle, benchmark, top=3, weight=0.7, out=whole)  # nothing is left to do


def test_stopped_while_it_writes_it_goes_on_to_the_same_file(benchmark, table, tmp_path, monkeypatch):
    whole, out = tmp_path / "whole.parquet", tmp_path / "out.parquet"
    score_table(table, Judge(), benchmark, top=3, weight=0.7, out=whole)
    write = NegativeTable.write

    def stopped(path, lists, facts):
        if path != out:
            return write(path, lists, facts)
        return write(path, (next(iter(lists)) if at == 0 else 1 / 0 for at in range(9)), facts)

    with monkeypatch.context() as patched:
        patched.setattr(NegativeTable, "write", stopped)
        with pytest.raises(ZeroDivisionError):
            score_table(table, Judge(), benchmark, top=3, weight=0.7, out=out)
    assert not out.exists()
    score_table(table, Judge(0), benchmark, top=3, weight=0.7, out=out)
    assert out.read_bytes() == whole.read_bytes()


def test_scores_made_otherwise_are_refused(benchmark, table, tmp_path):
    out = tmp_path / "scored.parquet"
    with pytest.raises(KeyboardInterrupt):
        score_table(table, Judge(2), benchmark, top=3, weight=0.7, out=out)
    with pytest.raises(ValueError, match=r"parquet was made otherwise: weight was 0\.7 and is 0\.5\."):
        score_table(table, Judge(), benchmark, top=3, weight=0.5, out=out)
    score_table(table, Judge(), benchmark, top=3, weight=0.7, out=out)
    with pytest.raises(ValueError, match=r"scored\.parquet was made otherwise: top was 3 and is 2; weight"):
        score_table(table, Judge(), benchmark, top=2, weight=0.5, out=out)


@pytest.mark.parametrize("wrong", [1.2, -0.1, float("nan")])
def test_an_answer_that_is_no_probability_is_refused(benchmark, table, tmp_path, wrong, monkeypatch):
    monkeypatch.setattr(Judge, "answer", lambda *_: wrong)
    with pytest.raises(ValueError, match="It must return probabilities, from 0 to 1"):
        score_table(table, Judge(), benchmark, top=3, weight=0.7, out=tmp_path / "scored.parquet")
    assert not list(tmp_path.rglob("*.parquet"))


def test_other_data_and_senseless_numbers_are_refused(benchmark, table, tmp_path):
    one = next(iter(table))
    lists = [one, MinedList("9:9", one.positives, one.positive_scores, one.dids, one.scores)]
    other = NegativeTable.write(tmp_path / "other.parquet", lists, {})
    with pytest.raises(ValueError, match=r"other\.parquet: 1 of 2 lists are of no training query of .*, '9:9'"):
        score_table(other, Judge(), benchmark, top=3, weight=0.7, out=tmp_path / "scored.parquet")
    for top, weight in ((0, 1.0), (3, -0.1), (3, float("nan"))):
        with pytest.raises(ValueError, match="give top from 1 and a finite weight from 0"):
            score_table(table, Judge(), benchmark, top=top, weight=weight, out=tmp_path / "scored.parquet")


def test_a_real_re_ranker_scores_texts_and_pictures_and_is_known_by_its_weights(benchmark, table, tmp_path, bases):
    from umarvel_hf.reranker_checkpoint import new_reranker

    folder = new_reranker(bases("qwen2_vl"), tmp_path / "judge")
    scored = score_table(table, load_reranker(folder), benchmark, top=2, weight=1.0, out=tmp_path / "scored.parquet")
    answers = np.concatenate([one.answers for one in scored])
    assert answers.shape == (36,) and len(np.unique(answers)) > 10
    again = load_reranker(folder)
    assert score_table(table, again, benchmark, top=2, weight=1.0, out=tmp_path / "scored.parquet")
    next(iter(again.model.parameters())).data += 1
    with pytest.raises(ValueError, match="reranker was"):
        score_table(table, again, benchmark, top=2, weight=1.0, out=tmp_path / "scored.parquet")
