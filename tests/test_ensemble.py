"""An ensemble as a teacher: it reads pairs as a re-ranker gets them, and says what its embedders say together."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from umarvel_hf.data import Query
from umarvel_hf.reranking import judge_pairs, reranker_query

SPEC = importlib.util.spec_from_file_location("ensemble", Path(__file__).parents[1] / "benchmarks/ensemble.py")
ensemble = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(ensemble)
FIND, FIND_MORE = "Find a picture.", "Find a picture. Mind its colour."


class Table:
    """An encoder of known vectors, by instruction and item."""

    def __init__(self, vectors):
        self.vectors, self.asked = vectors, []

    def encode(self, inputs, *, prompt=None, show_progress_bar=None):
        self.asked += [(prompt, one) for one in inputs]
        return np.array([self.vectors[prompt, repr(one)] for one in inputs], dtype=np.float32)


def query(text, image=None):
    return Query("1:1", text, image, "text", (), 0)


@pytest.mark.parametrize("instruction", [FIND, FIND_MORE])
@pytest.mark.parametrize("asked", [query("a dog."), query("", Path("a.png")), query("as a cat.", Path("a.png"))])
def test_what_a_re_ranker_is_asked_is_parted_again(asked, instruction):
    judge = ensemble.Ensemble([], [FIND, FIND_MORE])
    assert judge.parted(reranker_query(asked, instruction)) == (instruction, asked.item)


def test_a_query_without_an_instruction_is_refused():
    with pytest.raises(ValueError, match="'a dog' begins with none of 1 instructions"):
        ensemble.Ensemble([], [FIND]).parted("a dog")


def test_answers_are_the_mean_cosine_and_an_item_is_encoded_once():
    first = Table({(FIND, "'a dog.'"): [1, 0], (None, "'yes'"): [1, 0], (None, "'no'"): [-1, 0]})
    other = Table({(FIND, "'a dog.'"): [0, 1], (None, "'yes'"): [1, 0], (None, "'no'"): [0, -1]})
    judge = ensemble.Ensemble([first, other], [FIND])
    answers = judge_pairs(judge, [f"{FIND} a dog."] * 2, [["yes", "no"], ["no"]])
    assert [one.tolist() for one in answers] == [[0.5, 0.0], [0.0]]  # cosines 1 and 0; -1 and -1
    assert sorted(first.asked, key=str) == [(FIND, "a dog."), (None, "no"), (None, "yes")]
