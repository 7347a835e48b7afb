"""Re-ranking: how answers are asked for and added, where their weight may come from, and what it does to a result."""

import re

import numpy as np
import pytest

from mbeir import KnownVectors, write_mbeir
from umarvel_hf.data import MBeir, Query
from umarvel_hf.evaluation.benchmark import evaluate_benchmark
from umarvel_hf.evaluation.reranked import fit_fusion
from umarvel_hf.evaluation.results import MODEL, RERANKED
from umarvel_hf.reranker_checkpoint import new_reranker
from umarvel_hf.reranking import (
    WEIGHTS,
    Fusion,
    PairJudge,
    fuse,
    judge_pairs,
    load_reranker,
    reranker_fingerprint,
    reranker_query,
)
from umarvel_hf.search import Ranking

IDS = np.array([b"1:a", b"1:b", b"1:c", b"1:d"])
FUSION = Fusion(0.5, "val", 50, {"cirr_task7": ["8:1", "8:2"]}, {"0.0": 0.25, "0.5": 0.75}, "judge")


class Judge:
    """Answers by a function of query and candidate; remembers every pair."""

    def __init__(self, answer):
        self.answer, self.pairs = answer, []

    def predict(self, inputs, *, show_progress_bar=None):
        self.pairs += inputs
        return np.array([self.answer(*pair) for pair in inputs], dtype=np.float32)


class Shaped:
    def __init__(self, answers):
        self.answers = np.array(answers)

    def predict(self, inputs, **_):
        return self.answers


# Fusion


def test_answers_are_added_with_their_weight_and_ties_go_by_id_descending():
    ranking = Ranking(np.array([[2, 0, 3, 1]]), np.array([[0.6, 0.5, 0.4, 0.4]], dtype=np.float32))
    answers = np.array([[0.0, 0.2, 1.0, 0.8]], dtype=np.float32)
    fused = fuse(ranking, answers, 0.5, IDS)
    assert fused.positions.tolist() == [[3, 1, 2, 0]]  # 0.9, 0.8, and 0.6 twice: c before a
    assert fused.scores[0] == pytest.approx([0.9, 0.8, 0.6, 0.6])


def test_a_weight_of_nothing_leaves_the_order_as_it_was():
    ranking = Ranking(np.array([[2, 0, 3, 1]]), np.array([[0.6, 0.5, 0.4, 0.3]], dtype=np.float32))
    assert fuse(ranking, np.ones((1, 4), dtype=np.float32), 0.0, IDS).positions.tolist() == [[2, 0, 3, 1]]


def test_what_was_not_judged_stays_behind_what_was_and_gaps_stay_last():
    scores = np.array([[0.6, 0.5, 0.4, -np.inf], [0.1, -0.2, -0.3, -0.4]], dtype=np.float32)
    answers = np.array([[0.0, 0.1, 0.0, 0.0], [0.0, 0.9, 0.0, 0.0]], dtype=np.float32)
    fused = fuse(Ranking(np.array([[2, 0, 3, -1], [1, 0, 3, 2]]), scores), answers, 20.0, IDS)
    assert fused.positions.tolist() == [[0, 2, 3, -1], [0, 1, 3, 2]]
    assert fused.scores[0, 3] == -np.inf


def test_the_weight_is_saved_and_read_and_other_files_are_refused(tmp_path):
    FUSION.save(tmp_path / "fusion.json")
    assert Fusion.load(tmp_path / "fusion.json") == FUSION
    for content in ("{", "[]", '{"weight": 1}'):
        (tmp_path / "other.json").write_text(content)
        with pytest.raises(ValueError, match=r"other\.json holds no fusion weight"):
            Fusion.load(tmp_path / "other.json")


def test_a_weight_fitted_on_the_queries_to_evaluate_is_refused():
    with pytest.raises(ValueError, match=r"weight 0\.5 was fitted on split 'val', which is the one to evaluate"):
        FUSION.refuse_fitted_on("val", {"mscoco_task0": ["9:1"]})
    with pytest.raises(ValueError, match=r"fitted on 1 of the 3 queries of cirr_task7 to evaluate, '8:2'"):
        FUSION.refuse_fitted_on("validation", {"cirr_task7": ["8:2", "8:3", "8:4"]})
    FUSION.refuse_fitted_on("test", {"cirr_task7": ["8:3"], "mscoco_task0": ["8:1"]})


# Answers


def test_every_pair_is_judged_and_answers_come_back_by_query():
    judge = Judge(lambda query, candidate: len(candidate) / 10)
    said = judge_pairs(judge, ["a", "b", "c"], [["x", "yy"], [], ["zzz"]])
    assert judge.pairs == [("a", "x"), ("a", "yy"), ("c", "zzz")]
    assert [one.tolist() for one in said] == [pytest.approx([0.1, 0.2]), [], pytest.approx([0.3])]


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([[0.5], [0.5]], r"Shaped\.predict returned an array of shape \(2, 1\) for 2 pairs"),
        ([0.5], r"shape \(1,\) for 2 pairs"),
        ([0.5, np.nan], r"returned nan for pair 1"),
        ([1.5, 0.5], r"returned 1\.5 for pair 0"),
        ([0.5, -0.1], r"returned -0\.1\d* for pair 1"),
    ],
)
def test_answers_that_are_no_probabilities_are_refused(answers, message):
    with pytest.raises(ValueError, match=message):
        judge_pairs(Shaped(answers), ["a", "b"], [["x"], ["y"]])


def test_the_instruction_stands_before_the_text(tmp_path):
    image = tmp_path / "a.png"
    assert reranker_query(Query("1:1", "a dog.", None, "text", (), 0), "Find it.") == "Find it. a dog."
    both = Query("1:1", "a dog.", image, "image,text", (), 7)
    assert reranker_query(both, "Find it.") == {"image": image, "text": "Find it. a dog."}
    assert reranker_query(Query("1:1", "", image, "image", (), 4), "Find it.") == {"image": image, "text": "Find it."}


# In an evaluation


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("mbeir")


@pytest.fixture(scope="module")
def known(root):
    """Vectors of every item; each test query stands in the validation split too, under a qid of its own."""
    known = write_mbeir(root)
    for kind in ("query", "qrels"):
        (root / kind / "val").mkdir()
        for path in (root / kind / "test").iterdir():
            text = re.sub(r'("qid": "|^)(\d+):', r"\g<1>\2:9", path.read_text(), flags=re.MULTILINE)
            (root / kind / "val" / path.name.replace("_test", "_val")).write_text(text)
    for path in (root / "cand_pool/local").glob("*_test_*"):
        path.rename(path.with_name(path.name.replace("_test", "")))
    return known


@pytest.fixture
def data(root, known):
    return MBeir(root)


def knows(data: MBeir, split: str):
    """A judge that says 0.9 of right answers and 0.2 of others; queries are known by what they show."""
    right = set()
    for task in data.tasks(split):
        pool, qrels = data.pool(task, split), data.qrels(task, split)
        for query in data.queries(task, split):
            instruction = data.prompts(query, pool[next(iter(qrels[query.qid]))].modality)[0]
            right |= {(str(reranker_query(query, instruction)), str(pool[did].item)) for did in qrels[query.qid]}
    return Judge(lambda query, candidate: 0.9 if (str(query), str(candidate)) in right else 0.2)


def test_a_judge_that_knows_the_answers_gets_a_weight_and_the_result_gets_better(data, known):
    fusion = fit_fusion(known, knows(data, "val"), data, suite="m-beir", top=30, name="oracle")
    assert fusion.weight > 0 and (fusion.split, fusion.top, fusion.reranker) == ("val", 30, "oracle")
    assert fusion.curve[str(fusion.weight)] == max(fusion.curve.values()) > fusion.curve["0.0"]
    assert fusion.qids["cirr_task7"] == [query.qid for query in data.queries(data.tasks("val")[0], "val")]
    result = evaluate_benchmark(known, data, suite="m-beir", reranker=knows(data, "test"), fusion=fusion)
    assert result.systems == [MODEL, RERANKED] and result.fusion["weight"] == fusion.weight
    for pool in ("local", "union"):
        assert result.mean("M-BEIR", RERANKED, pool) > result.mean("M-BEIR", MODEL, pool)
    with pytest.raises(ValueError, match="fitted on split 'val', which is the one to evaluate"):
        evaluate_benchmark(known, data, split="val", reranker=knows(data, "val"), fusion=fusion)


def test_the_weight_is_the_smallest_of_those_that_serve_equally(data, known):
    assert fit_fusion(known, Judge(lambda *_: 0.5), data).weight == min(WEIGHTS) == 0


def test_a_judge_that_draws_lots_does_no_harm_on_what_it_was_fitted_on(data, known):
    lots = np.random.default_rng(0)
    fusion = fit_fusion(known, Judge(lambda *_: lots.random()), data)
    assert fusion.curve[str(fusion.weight)] >= fusion.curve["0.0"] > fusion.curve["20.0"]


def test_the_score_of_the_fit_is_that_of_the_evaluation(data, known):
    fusion = fit_fusion(known, knows(data, "val"), data)
    plain = evaluate_benchmark(known, data, split="val", pools=["local"], baselines=False)
    assert fusion.curve["0.0"] == pytest.approx(np.mean([task.rate(MODEL, "local") for task in plain.tasks]))


def test_a_pair_is_judged_once_though_both_pools_hold_it_and_the_lists_are_those_of_brute_force(data, known):
    judge = Judge(lambda query, candidate: (len(str(candidate)) * 7 + len(str(query))) % 11 / 10)
    fusion = Fusion(0.3, "val", 10, {}, {}, "lengths")
    task = data.tasks()[0]
    result = evaluate_benchmark(known, data, tasks=[task.name], baselines=False, reranker=judge, fusion=fusion)
    assert len({str(pair) for pair in judge.pairs}) == len(judge.pairs)
    asked = {str(query) for query, _ in judge.pairs}
    for pool, candidates in (("local", data.pool(task)), ("union", data.union_pool())):
        hits = []
        for query in data.queries(task):
            instruction = data.prompts(query, candidates[query.positives[0]].modality)[0]
            shown = reranker_query(query, instruction)
            assert str(shown) in asked
            scores = cosines(known, query.item, instruction, candidates)
            first = sorted(scores, key=lambda did: (scores[did], did), reverse=True)[:10]
            fused = {did: scores[did] + 0.3 * judge.answer(shown, candidates[did].item) for did in first}
            best = sorted(fused, key=lambda did: (round(fused[did], 6), did), reverse=True)[:5]
            hits.append(float(not data.qrels(task)[query.qid].keys().isdisjoint(best)))
        assert result.tasks[0].scores[RERANKED][pool].values["hit@5"] == hits


def test_judge_and_weight_go_together(data, known):
    with pytest.raises(ValueError, match="reranker and fusion belong together"):
        evaluate_benchmark(known, data, reranker=Judge(lambda *_: 0.5))
    for top in (5, 51):  # R@10 does not change when the first ten are ordered anew
        with pytest.raises(ValueError, match=rf"top is {top}; let the re-ranker judge 11 to 50"):
            fit_fusion(known, Judge(lambda *_: 0.5), data, top=top)


def cosines(known: KnownVectors, item, instruction, candidates):
    query = known.encode([item], prompt=instruction)[0].astype(np.float16).astype(np.float32)
    vectors = known.encode([one.item for one in candidates.values()]).astype(np.float16).astype(np.float32)
    return dict(zip(candidates, (vectors @ query).round(6).tolist(), strict=True))


# A real one


@pytest.fixture
def judge(bases, tmp_path):
    return load_reranker(new_reranker(bases("qwen2_vl"), tmp_path / "judge"))


def test_a_cross_encoder_over_yes_and_no_judges_texts_and_pictures(judge, pictures):
    queries = ["Find a dog.", {"image": pictures[0], "text": "the same, darker"}]
    candidates = [["a dog", {"image": pictures[1]}], ["a bench"]]
    said = np.concatenate(judge_pairs(judge, queries, candidates))
    assert said.shape == (3,) and len(set(said.tolist())) == 3
    alone = [judge_pairs(judge, [queries[0]], [[one]])[0][0] for one in candidates[0]]
    assert said[:2] == pytest.approx(alone, abs=1e-5)


def test_a_path_is_a_picture_and_a_text_is_a_text_whatever_it_names(judge, pictures, tmp_path):
    path = tmp_path / "a.png"
    pictures[0].save(path)
    in_memory, on_disk = (judge.predict([("a dog", {"image": one})]) for one in (pictures[0], path))
    assert on_disk == pytest.approx(in_memory, abs=1e-6)
    named = judge.predict([("a dog", str(path)), ("http://localhost:9/a.png", "a dog")])
    spelled = [({"text": "a dog"}, {"text": str(path)}), ({"text": "http://localhost:9/a.png"}, {"text": "a dog"})]
    assert named == pytest.approx(judge.model.predict(spelled), abs=1e-6)


def test_a_re_ranker_of_texts_alone_gets_its_texts_as_they_are():
    class TextsOnly:
        def supports(self, modality):
            return modality == "text"

        def predict(self, pairs, **_):
            assert pairs == [("a", "b")]
            return np.array([0.5])

    assert PairJudge(TextsOnly()).predict((("a", "b"),)).tolist() == [0.5]


def test_a_re_ranker_is_known_by_its_weights(judge, bases, tmp_path):
    assert reranker_fingerprint(Judge(None)) == "Judge"
    known = reranker_fingerprint(judge)
    assert known == reranker_fingerprint(load_reranker(new_reranker(bases("qwen2_vl"), tmp_path / "again")))
    next(judge.model.parameters()).data[0] += 1
    assert reranker_fingerprint(judge) != known
