"""What the pairs of one query share runs once, and the answers are those of one forward per pair."""

import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sentence_transformers import CrossEncoder

from pictures import picture
from umarvel_hf import prefix
from umarvel_hf.prefix import SharedLayer, batches, by_query, shared_length, shares_prefixes
from umarvel_hf.reranker_checkpoint import new_reranker
from umarvel_hf.reranking import as_parts, load_reranker

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
PICTURE = 9  # a token


@pytest.fixture(scope="module")
def judges(bases, tmp_path_factory):
    """``judges(family)``: the re-ranker of a tiny base. Use it, never change it."""
    root, made = tmp_path_factory.mktemp("judges"), {}

    def judge(family):
        if family not in made:
            made[family] = load_reranker(new_reranker(bases(family), root / family), device="cpu")
        return made[family]

    return judge


@pytest.fixture
def queries(pictures):
    return ["Find a dog.", {"image": pictures[1]}, {"image": pictures[2], "text": "the same, darker"}]


@pytest.fixture
def candidates(pictures):
    """Texts short and long, and pictures: two of one size, with which both candidates begin alike."""
    return [
        "a dog",
        {"image": pictures[0], "text": "a bench"},
        "a dog and a woman are playing on the bench" * 3,
        {"image": picture(56, 56, seed=7)},
        "é 犬",
        {"image": pictures[1]},
    ]


def one_at_a_time(judge, pairs):
    parts = [(as_parts(query), as_parts(candidate)) for query, candidate in pairs]
    return judge.model.predict(parts, batch_size=1, show_progress_bar=False)


@pytest.fixture
def rows(monkeypatch):
    """How many rows every forward of :func:`prefix.forward` has."""
    seen, forward = [], prefix.forward
    monkeypatch.setattr(prefix, "forward", lambda model, *given: seen.append(len(given[1])) or forward(model, *given))
    return seen


@pytest.fixture
def plain(monkeypatch):
    """The pairs that the host judges."""
    seen, predict = [], CrossEncoder.predict
    monkeypatch.setattr(
        CrossEncoder, "predict", lambda model, pairs, **given: seen.extend(pairs) or predict(model, pairs, **given)
    )
    return seen


# The same answers


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_those_of_one_forward_per_pair_in_the_order_of_the_pairs(
    judges, queries, candidates, family, rows, monkeypatch
):
    judge = judges(family)
    pairs = [(query, candidate) for candidate in candidates for query in queries]
    alone = one_at_a_time(judge, pairs)
    assert len({round(float(one), 4) for one in alone}) == len(pairs)
    for at_once, expected in ((32, 1 + 1), (4, 1 + 2), (1, 1 + 6)):  # the query's forward, then its candidates'
        rows.clear()
        monkeypatch.setattr(prefix, "PAIRS", at_once)
        assert_allclose(judge.predict(pairs), alone, rtol=0, atol=1e-5)
        assert len(rows) == 3 * expected and max(rows) <= at_once


@pytest.mark.parametrize("family", FAMILIES)
def test_pictures_of_one_size_are_not_taken_for_one(judges, queries, family):
    judge = judges(family)
    pairs = [(query, {"image": picture(56, 56, seed=seed)}) for query in queries for seed in range(4)]
    assert_allclose(judge.predict(pairs), one_at_a_time(judge, pairs), rtol=0, atol=1e-5)


def test_the_same_pair_twice_is_answered_twice(judges, queries):
    judge = judges("qwen2_vl")
    pairs = [(queries[2], "a dog")] * 2
    assert_allclose(judge.predict(pairs), one_at_a_time(judge, pairs), rtol=0, atol=1e-5)


def test_attention_by_hand_gives_the_same_answers(judges, queries, candidates):
    judge = judges("qwen3_vl")
    pairs = [(query, candidate) for query in queries for candidate in candidates]
    expected = judge.predict(pairs)
    judge.model.transformers_model.set_attn_implementation("eager")
    try:
        assert_allclose(judge.predict(pairs), expected, rtol=0, atol=1e-5)
    finally:
        judge.model.transformers_model.set_attn_implementation("sdpa")


# Once


@pytest.mark.parametrize("family", FAMILIES)
def test_a_querys_picture_is_preprocessed_and_seen_once(judges, queries, family, monkeypatch):
    judge, patches, pictures = judges(family), [], []
    processor = judge.model.processor.image_processor
    prepare = type(processor).__call__
    monkeypatch.setattr(
        type(processor),
        "__call__",
        lambda self, images, **given: pictures.extend(images) or prepare(self, images, **given),
    )
    tower = judge.model.transformers_model.base_model.visual
    hook = tower.register_forward_pre_hook(lambda _, given: patches.append(len(given[0])))
    try:
        judge.predict([(queries[2], f"a dog, {at}") for at in range(5)])
        of_query = processor(images=[queries[2]["image"]])["image_grid_thw"].prod()
        assert patches == [of_query] and len(pictures) == 1 + 1
        patches.clear()
        own = [{"image": picture(56, 56, seed=seed)} for seed in range(5)]
        judge.predict([(queries[2], one) for one in own])
        assert patches == [of_query, 5 * processor(images=[own[0]["image"]])["image_grid_thw"].prod()]
    finally:
        hook.remove()


def test_keys_and_values_of_what_came_first_are_kept_and_no_others():
    layer, first, rows = SharedLayer(), torch.rand(1, 2, 5, 4), torch.rand(3, 2, 7, 4)
    layer.update(first, -first)
    for _ in range(2):
        keys, values = layer.update(rows, -rows)
        assert keys.shape == (3, 2, 12, 4) and torch.equal(keys[1], torch.cat([first[0], rows[1]], dim=1))
        assert torch.equal(values, -keys) and layer.get_seq_length() == 5


# Where they part


@pytest.mark.parametrize(
    ("rows", "pictures", "expected"),
    [
        ([[1, 2, 3, 4], [1, 2, 5]], 0, 2),
        ([[1, 2], [1, 2, 3]], 0, 1),  # a token is left to the first
        ([[1, 2, 3]], 0, 2),
        ([[1, PICTURE, 2, PICTURE, 3, 4], [1, PICTURE, 2, PICTURE, 3, 5]], 1, 3),  # the second one is the candidate's
        ([[1, PICTURE, 2, PICTURE, 3, 4], [1, PICTURE, 2, PICTURE, 3, 5]], 2, 5),
        ([[1, 2, PICTURE, 3], [1, 2, 4, 4], [1, 7, 3]], 0, 1),
    ],
)
def test_what_is_shared_ends_before_the_first_difference_and_a_candidates_picture(rows, pictures, expected):
    assert shared_length(rows, PICTURE, pictures) == expected


def test_batches_go_from_long_to_short_and_hold_so_many_rows_or_tokens(monkeypatch):
    monkeypatch.setattr(prefix, "TOKENS", 60)
    for at_once, lengths, expected in (
        (3, [3, 10, 20, 1, 4], [[2, 1], [4, 0, 3]]),
        (1, [90, 1, 1], [[0], [1], [2]]),
        (9, [90, 1, 2, 70], [[0], [3], [2, 1]]),
    ):
        monkeypatch.setattr(prefix, "PAIRS", at_once)
        assert list(batches(lengths, 10)) == expected


def test_queries_are_one_by_text_by_address_or_as_the_same_object(pictures, frames):
    found = by_query(
        [
            ({"text": "a"}, {"text": "x"}),
            ({"image": "a"}, {"text": "x"}),
            ({"text": "a"}, {"image": pictures[0]}),
            ({"image": pictures[1]}, {"text": "x"}),
            ({"image": "a"}, {"text": "y"}),
            ({"image": pictures[1].copy()}, {"text": "x"}),
            ({"image": pictures[1]}, {"text": "y"}),
            ({"text": "a"}, {"video": frames}),
            ({"text": "alone"}, {"text": "x"}),
        ]
    )
    assert found == [[0, 2], [1, 4], [3, 6]]


# Not at all


def test_films_and_a_querys_only_pair_go_to_the_host(judges, queries, frames, plain):
    judge = judges("qwen2_vl")
    pairs = [(queries[0], "a dog"), (queries[0], {"video": frames}), (queries[1], "a dog"), (queries[0], "a bench")]
    said = judge.predict(pairs)
    assert plain == [({"text": "Find a dog."}, {"video": frames}), ({"image": queries[1]["image"]}, {"text": "a dog"})]
    assert_allclose(said, one_at_a_time(judge, pairs), rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["smolvlm", "llava_onevision"])
def test_a_backbone_that_lays_out_pictures_otherwise_is_left_to_the_host(judges, queries, candidates, family, plain):
    judge = judges(family)
    assert not shares_prefixes(judge.model)
    pairs = [(query, candidate) for query in queries for candidate in candidates]
    said = judge.predict(pairs)
    assert len(plain) == len(pairs)
    parts = [(as_parts(query), as_parts(candidate)) for query, candidate in pairs]
    assert_array_equal(said, judge.model.predict(parts))


def test_a_re_ranker_with_settings_of_its_own_is_left_to_the_host(judges, monkeypatch):
    model = judges("qwen2_vl").model
    assert shares_prefixes(model)
    with monkeypatch.context() as patch:
        patch.setattr(model[0], "processing_kwargs", {"text": {"truncation": True, "max_length": 99}})
        assert not shares_prefixes(model)
    with monkeypatch.context() as patch:
        patch.setattr(model, "default_prompt_name", "query")
        assert not shares_prefixes(model)
    decoder = model.transformers_model.config.get_text_config()
    with monkeypatch.context() as patch:
        patch.setattr(decoder, "is_causal", False, raising=False)
        assert not shares_prefixes(model)
    monkeypatch.setattr(decoder, "layer_types", len(decoder.layer_types) * ["sliding_attention"])
    monkeypatch.setattr(decoder, "sliding_window", 8)
    assert not shares_prefixes(model)


def test_no_pairs_have_no_answers(judges):
    assert judges("qwen2_vl").predict([]).shape == (0,)
