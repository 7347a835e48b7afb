"""InfoNCE by hand, cached and not, on one process and on two."""

import copy
import functools
import json
import math
import os
import socket
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import normalize
from torch.testing import assert_close

import train_on_ranks
from backbones import FAMILIES
from foreign import WARNINGS_ARE_ERRORS
from pictures import picture
from umarvel_hf.encoding import load
from umarvel_hf.trainer.losses import DistillKL, InfoNCE, NotFinite, similarity_of


@pytest.fixture(scope="module")
def model(checkpoint):
    """A model of our own: gradients and temperature are changed here."""
    return load(checkpoint)


@pytest.fixture
def loss(model):
    with torch.no_grad():
        similarity_of(model).log_temperature.fill_(math.log(0.5))
    model.zero_grad()
    return InfoNCE(model)


def random_unit(*shape, seed=0):
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def by_hand(rows, negatives_of, temperature):
    """Mean cross-entropy in Python: ``rows`` of (query, positive), ``negatives_of(i)`` row i's other candidates."""
    total = 0.0
    for at, (query, positive) in enumerate(rows):
        own = math.exp(float(query @ positive) / temperature)
        others = sum(math.exp(float(query @ candidate) / temperature) for candidate in negatives_of(at))
        total -= math.log(own / (own + others))
    return total / len(rows)


@pytest.mark.parametrize("columns", [2, 3, 5])
def test_embeddings_that_say_nothing_cost_the_logarithm_of_the_candidates(loss, columns):
    zeros, same = torch.zeros(4, 8), normalize(torch.ones(4, 8), dim=-1)
    for embeddings in (zeros, same):
        expected = math.log(4 * (columns - 1))
        assert loss.compare([embeddings] * columns).item() == pytest.approx(expected, rel=1e-6)


def test_two_right_answers_at_a_right_angle(loss):
    eye = torch.eye(2)
    assert loss.compare([eye, eye]).item() == pytest.approx(math.log(1 + math.exp(-1 / 0.5)), rel=1e-6)
    assert loss.compare([eye, eye.flip(0)]).item() == pytest.approx(math.log(1 + math.exp(1 / 0.5)), rel=1e-6)


def test_every_query_sees_all_positives_and_all_hard_negatives(loss):
    queries, positives, first, second = (random_unit(3, 8, seed=seed) for seed in range(4))
    rows = list(zip(queries, positives, strict=True))

    def negatives_of(at):
        return [positives[other] for other in range(3) if other != at] + list(first) + list(second)

    computed = loss.compare([queries, positives, first, second])
    assert computed.item() == pytest.approx(by_hand(rows, negatives_of, 0.5), rel=1e-5)


def test_known_positives_are_left_out_by_id(loss):
    queries, positives, hard = (random_unit(5, 8, seed=seed) for seed in range(3))
    rows = list(zip(queries, positives, strict=True))
    ids = torch.tensor([
        [1, 10, 20, -1],
        [1, 11, 21, -1],  # the query of row 0 once more
        [2, 10, 22, -1],  # the positive of row 0 once more
        [3, 12, 23, 13],  # 13 is a further positive of it
        [4, 13, -1, -1],
    ])  # fmt: skip
    left_out = {0: {1, 2}, 1: {0}, 2: {0}, 3: {4}, 4: set()}

    def negatives_of(at):
        return [positives[other] for other in range(5) if other != at and other not in left_out[at]] + list(hard)

    computed = loss.compare([queries, positives, hard], ids)
    assert computed.item() == pytest.approx(by_hand(rows, negatives_of, 0.5), rel=1e-5)
    everything = by_hand(rows, lambda at: [p for other, p in enumerate(positives) if other != at] + list(hard), 0.5)
    assert loss.compare([queries, positives, hard]).item() == pytest.approx(everything, rel=1e-5)
    assert everything > computed.item() + 1e-3


def test_hard_negatives_that_are_right_for_a_row_are_left_out_of_it_whoever_brings_them(loss):
    queries, positives, first, second = (random_unit(3, 8, seed=seed) for seed in range(4))
    ids = torch.tensor([
        [1, 10, 20, 12, 11, -1],  # its second negative is a positive of row 2, its other positive that of row 1
        [2, 11, 21, -1, -1, -1],  # one of its negatives has no id
        [3, 12, 10, 11, 21, 20],  # both its negatives are positives of others
    ])  # fmt: skip
    candidates = torch.cat([positives, first, second])  # dids 10 11 12, 20 21 10, 12 -1 11
    left_out = {0: {0, 1, 5, 8}, 1: {1, 8}, 2: {2, 3, 4, 6}}  # the row's own positive counts, but not as a negative

    def negatives_of(at):
        return [candidate for number, candidate in enumerate(candidates) if number not in left_out[at]]

    computed = loss.compare([queries, positives, first, second], ids)
    rows = list(zip(queries, positives, strict=True))
    assert computed.item() == pytest.approx(by_hand(rows, negatives_of, 0.5), rel=1e-5)
    assert (loss.counts["masked"], loss.counts["negatives"]) == (3 + 1 + 3, 3 * 8)

    alone = InfoNCE(loss.model, shared=False)
    kept = {0: [first[0], second[0]], 1: [first[1], second[1]], 2: [first[2], second[2]]}
    assert alone.compare([queries, positives, first, second], ids).item() == pytest.approx(
        by_hand(rows, kept.get, 0.5), rel=1e-5
    )
    ids[0, 2] = 11  # now the first negative of row 0 is its other positive
    kept[0] = [second[0]]
    assert alone.compare([queries, positives, first, second], ids).item() == pytest.approx(
        by_hand(rows, kept.get, 0.5), rel=1e-5
    )
    assert (alone.counts["masked"], alone.counts["negatives"]) == (1, 2 * 3 * 2)


def test_the_symmetric_loss_is_the_mean_of_both_ways_and_masks_both(loss):
    queries, positives, hard = (random_unit(4, 8, seed=seed) for seed in range(3))
    ids = torch.tensor([[1, 10, 20, 13], [1, 11, 21, -1], [2, 12, 22, -1], [3, 13, 23, -1]])
    # Row 0 and 1 are of one query; the positive of row 3 is right for row 0, not the other way round.
    there, back = {0: {1, 3}, 1: {0}, 2: set(), 3: set()}, {0: {1}, 1: {0}, 2: set(), 3: {0}}

    def others(of, left_out):
        return lambda at: [one for number, one in enumerate(of) if number != at and number not in left_out[at]]

    forwards = by_hand(
        list(zip(queries, positives, strict=True)), lambda at: others(positives, there)(at) + list(hard), 0.5
    )
    backwards = by_hand(list(zip(positives, queries, strict=True)), others(queries, back), 0.5)
    both = InfoNCE(loss.model, symmetric=True)
    computed = both.compare([queries, positives, hard], ids)
    assert computed.item() == pytest.approx((forwards + backwards) / 2, rel=1e-5)
    with pytest.raises(ValueError, match="symmetric=True compares positives with all queries, shared=False with none"):
        InfoNCE(loss.model, symmetric=True, shared=False)


def test_distillation_is_the_divergence_from_the_teacher_by_hand(loss, model):
    # Cosines 1, 0, 0 and 0, 1, 0 at temperature 0.5; halved teacher scores over the temperature are the scores.
    queries, candidates = torch.eye(3)[:2], [torch.eye(3)[[column] * 2] for column in range(3)]
    scores = [[2.0, 1.0, 0.0], [0.5, 0.5, 0.5]]
    right = [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
    labels = torch.tensor([[scores[row], right[row]] for row in range(2)])
    students = [[2.0, 0.0, 0.0], [0.0, 2.0, 0.0]]

    def probabilities(logits):
        return [math.exp(logit) / sum(map(math.exp, logits)) for logit in logits]

    expected = 0.0
    for row in range(2):
        teacher, student = probabilities(scores[row]), probabilities(students[row])
        expected += sum(p * math.log(p / r) for p, r in zip(teacher, student, strict=True)) / 2
    distilled = DistillKL(model)
    assert distilled.compare([queries, *candidates], labels).item() == pytest.approx(expected, rel=1e-5)
    found = -math.log(probabilities(students[0])[0] + probabilities(students[0])[2])  # row 1 has no right candidate
    weighed = DistillKL(model, infonce_weight=0.3).compare([queries, *candidates], labels)
    assert weighed.item() == pytest.approx(expected + 0.3 * found / 2, rel=1e-5)
    agreed = torch.stack([2 * torch.eye(3)[:2], torch.zeros(2, 3)], dim=1)  # a teacher that says what the student does
    assert distilled.compare([queries, *candidates], agreed).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("labels", "said"),
    [(None, "is missing"), (torch.zeros(2, 2, 2), r"has shape \(2, 2, 2\)"), (torch.zeros(2, 2, 3).long(), "int64")],
    ids=["none", "narrow", "integers"],
)
def test_a_teacher_without_a_score_for_every_candidate_is_refused(model, labels, said):
    with pytest.raises(ValueError, match=rf"The label column {said}.*give floats \(2, 2, 3\)|{said}"):
        DistillKL(model).compare([random_unit(2, 8)] * 4, labels)


def test_a_teacher_moves_the_temperature_through_the_student_only(loss, model):
    queries, candidates = random_unit(4, 8), [random_unit(4, 8, seed=seed) for seed in (1, 2)]
    labels = torch.stack([torch.rand(4, 2, generator=torch.Generator().manual_seed(0)), torch.zeros(4, 2)], dim=1)
    distilled, parameter = DistillKL(model), similarity_of(model).log_temperature
    distilled.compare([queries, *candidates], labels).backward()
    teacher = (labels[:, 0] / 2 / 0.5).softmax(dim=1)

    def divergence(temperature):
        student = (torch.stack([(queries * column).sum(1) for column in candidates], 1) / temperature).log_softmax(1)
        return (teacher * (teacher.log() - student)).sum(1).mean().item()

    steps = [divergence(0.5 * math.exp(step)) for step in (-1e-2, 1e-2)]
    assert parameter.grad.item() == pytest.approx((steps[1] - steps[0]) / 2e-2, rel=1e-2)


def test_a_row_whose_other_candidates_are_all_known_costs_nothing(loss):
    embeddings = random_unit(3, 8)
    ids = torch.tensor([[1, 10], [1, 11], [1, 12]])
    assert loss.compare([embeddings, embeddings.flip(0)], ids).item() == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize(
    "ids", [torch.zeros(3), torch.zeros(3, 1, dtype=torch.long), torch.zeros(3, 2)], ids=["flat", "narrow", "float"]
)
def test_labels_of_another_shape_are_refused(loss, ids):
    with pytest.raises(ValueError, match=r"give integers \(B, 2 \+ K \+ P\): qid, did"):
        loss.compare([random_unit(3, 8)] * 2, ids)


def test_a_column_of_queries_alone_is_refused(loss):
    with pytest.raises(ValueError, match="columns of queries and positives, got 1 column"):
        loss.compare([random_unit(3, 8)])
    with pytest.raises(ValueError, match=r"queries, positives and \(shared=False\) negatives, got 2 column"):
        InfoNCE(loss.model, shared=False).compare([random_unit(3, 8)] * 2)


def test_a_mini_batch_holds_a_row_at_least(model):
    with pytest.raises(ValueError, match="mini_batch_size is 0; give at least 1"):
        InfoNCE(model, mini_batch_size=0)


def test_a_model_without_a_temperature_is_refused():
    with pytest.raises(ValueError, match="Linear, holds no learned temperature"):
        similarity_of(torch.nn.Sequential(torch.nn.Linear(2, 2)))


def test_the_gradient_of_the_temperature_is_that_of_a_difference_quotient(loss, model):
    queries, positives = random_unit(4, 8), random_unit(4, 8, seed=1)
    loss.compare([queries, positives]).backward()
    parameter = similarity_of(model).log_temperature
    values = []
    for step in (-1e-3, 1e-3):
        with torch.no_grad():
            parameter.fill_(math.log(0.5) + step)
            values.append(loss.compare([queries, positives]).item())
    assert parameter.grad.item() == pytest.approx((values[1] - values[0]) / 2e-3, rel=1e-3)


def test_logits_are_float32_under_autocast(loss):
    queries = random_unit(4, 8)
    exact = loss.compare([queries, queries])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        computed = loss.compare([queries, queries])
    assert computed.dtype == torch.float32 and computed.item() == exact.item()


@pytest.fixture(scope="module")
def columns(pictures, frames):
    """Seven rows of a mix: text, pictures, both, two pictures, a film; one column with an instruction."""
    film = {"video": frames}
    queries = ["a dog", pictures[0], {"image": pictures[1], "text": "a"}, film, {"image": pictures[:2]}, "c", "d"]
    positives = [{"image": pictures[2], "text": "b"}, "two", pictures[0], "e", {"image": pictures[1:]}, film, "f"]
    return queries, positives, positives[::-1]


LABELS = {
    InfoNCE: torch.tensor([[at, 10 + at % 6, 20 + at % 5, 22] for at in range(7)]),
    DistillKL: torch.stack([torch.arange(14).reshape(7, 2) % 5 / 4, torch.ones(7, 2)], dim=1),
}


def gradients(loss, columns, labels=None):
    loss.model.zero_grad(set_to_none=True)
    prompts = ["Find it.", None, None]
    # Collated as the trainer does, for a batch that is used twice must not be changed by its first use.
    batch = [loss.model.preprocess(column, prompt=prompt) for column, prompt in zip(columns, prompts, strict=True)]
    value = loss(copy.deepcopy(batch), labels)
    (value / 3).backward()  # as the trainer does where it accumulates gradients of three batches
    return value.item(), {name: p.grad.clone() for name, p in loss.model.named_parameters() if p.grad is not None}


def close_gradients(one, other):
    assert one.keys() == other.keys() and any("log_temperature" in name for name in one)
    for name, gradient in one.items():
        scale = max(1.0, gradient.abs().max().item())
        assert_close(other[name] / scale, gradient / scale, rtol=0, atol=1e-5, msg=lambda said: f"{name}: {said}")  # noqa: B023


@pytest.mark.parametrize("mini_batch_size", [1, 2, 7])
@pytest.mark.parametrize("kind", LABELS)
def test_cached_gradients_are_those_of_the_whole_batch(model, columns, plain, kind, mini_batch_size):
    value, expected = plain(kind)
    cached_value, cached = gradients(kind(model, mini_batch_size), columns, LABELS[kind])
    assert cached_value == pytest.approx(value, rel=1e-5)
    assert any("visual" in name for name in cached)
    close_gradients(expected, cached)


@pytest.fixture(scope="module")
def plain(model, columns):
    """``plain(kind)``: value and gradients of a loss without caching."""
    return functools.cache(lambda kind: gradients(kind(model), columns, LABELS[kind]))


# Only of Qwen2-VL and Qwen3-VL does sentence-transformers 6.2 cut a batch with films into mini-batches.
@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "qwen2_vl"])
def test_cached_gradients_are_right_for_every_backbone(checkpoints, columns, family):
    model = load(checkpoints(family))
    if family != "qwen3_vl":
        columns = [["b" if isinstance(item, dict) and "video" in item else item for item in one] for one in columns]
    value, expected = gradients(InfoNCE(model), columns)
    cached_value, cached = gradients(InfoNCE(model, mini_batch_size=2), columns)
    assert cached_value == pytest.approx(value, rel=1e-5)
    close_gradients(expected, cached)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl"])
def test_a_frozen_vision_tower_is_asked_once_a_step(checkpoints, columns, family):
    model = load(checkpoints(family))
    tower, asked = model[0].model.vlm.visual, []
    tower.register_forward_hook(lambda *_: asked.append(True))
    tower.requires_grad_(False)
    value, expected = gradients(InfoNCE(model), columns)
    asked.clear()
    loss = InfoNCE(model, mini_batch_size=2)
    cached_value, cached = gradients(loss, columns)
    assert cached_value == pytest.approx(value, rel=1e-5)
    close_gradients(expected, cached)
    once = len(asked)
    assert once and not loss._seen._kept
    tower.requires_grad_(True)
    gradients(loss, columns)
    assert len(asked) == once + 2 * once
    assert not {"get_image_features", "get_video_features"} & set(vars(model[0].model.vlm))


def test_tokens_and_slots_of_a_batch_are_counted_once_and_only_in_training(model, pictures):
    columns = ["a dog", pictures[0], "a bench"], ["b", {"image": pictures[1], "text": "a"}, "c"]
    batch = [model.preprocess(column) for column in columns]
    tokens = sum(model.preprocess([item])["input_ids"].shape[1] for column in columns for item in column)
    for loss in (InfoNCE(model), InfoNCE(model, mini_batch_size=2)):
        for _ in range(2):
            loss(copy.deepcopy(batch)).backward()
        with torch.no_grad():
            loss(copy.deepcopy(batch))
        slots = 2 * sum(3 * column["input_ids"].shape[1] for column in batch)
        assert loss.counts.pop("started") > 0
        assert loss.counts == {"tokens": 2 * tokens, "slots": slots, "negatives": 2 * 3 * 2, "masked": 0}
        assert slots > 2 * tokens  # alone no row is padded


@pytest.mark.parametrize("mini_batch_size", [None, 2])
def test_a_loss_that_is_not_a_number_is_refused_with_its_labels(model, mini_batch_size):
    model.zero_grad()
    labels = torch.tensor([[[0.5, math.nan], [0, 0]], [[0.5, 0.5], [0, 0]], [[0.5, 0.1], [0, 0]]])
    batch = [model.preprocess(["a", "b", "c"]) for _ in range(3)]
    with pytest.raises(NotFinite, match="The loss of a batch is nan; no weight was changed by it") as refused:
        DistillKL(model, mini_batch_size)(batch, labels).backward()
    assert refused.value.labels is labels
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.fixture(scope="module")
def on_two_ranks(checkpoint, tmp_path_factory):
    """``on_two_ranks(job)``: the parameters of either rank after a job of train_on_ranks.py, and what was logged."""
    out = tmp_path_factory.mktemp("ranks")
    picture(56, 56, seed=0).save(out / "picture.png")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        ranks = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    # accelerate 1.15 and sentence-transformers 6.2 use names that torch 2.13 has deprecated.
    warnings = [*WARNINGS_ARE_ERRORS, "-W", "ignore:`broadcast_buffers` is deprecated:FutureWarning"]
    warnings += ["-W", "ignore:torch.distributed.nn.functional.all_gather is deprecated:FutureWarning"]
    script, paths = train_on_ranks.__file__, [str(checkpoint), str(out / "picture.png"), str(out)]
    running = []
    for rank in ("0", "1"):
        environment = os.environ | ranks | {"RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": "1"}
        with (out / f"{rank}.log").open("w") as said:
            command = [sys.executable, *warnings, script, *paths, "4"]
            running.append(subprocess.Popen(command, env=environment, stdout=said, stderr=subprocess.STDOUT))
    try:
        codes = [process.wait(timeout=400) for process in running]  # a rank that waits for the other would never end
    finally:
        for process in running:
            process.kill()
    assert codes == [0, 0], "".join((out / f"{rank}.log").read_text() for rank in (0, 1))

    def result(job):
        trained = [load_file(out / f"{job}-{rank}.safetensors") for rank in (0, 1)]
        return trained, json.loads((out / f"{job}-0.json").read_text()), str(out / "picture.png")

    return result


@pytest.mark.parametrize("job", train_on_ranks.JOBS)
def test_two_ranks_with_four_rows_train_as_one_with_eight(checkpoint, on_two_ranks, tmp_path, job):
    two, logged, path = on_two_ranks(job)
    one, logged_by_one = train_on_ranks.train(job, checkpoint, path, tmp_path, rows_a_rank=8)
    before = dict(load(checkpoint).named_parameters())
    assert "lora" in job or before.keys() == one.keys()
    for name, parameter in one.items():
        assert torch.equal(two[0][name], two[1][name]), name
        assert_close(two[0][name], parameter, rtol=1e-5, atol=1e-5, msg=lambda said, name=name: f"{name}: {said}")
    temperatures = [name for name in one if name.endswith("log_temperature") and "original" not in name]
    assert len(temperatures) == 1 and (one[temperatures[0]] - math.log(0.05)).abs() > 1e-3
    moved = [name for name, parameter in one.items() if name in before and not torch.equal(parameter, before[name])]
    assert ("lora" in job) == (not moved) and ("lora" in job or any("visual" in name for name in moved))
    assert logged["loss"] == pytest.approx(logged_by_one["loss"], rel=1e-5)
    assert logged.get("masked_share") == logged_by_one.get("masked_share")
    assert logged["tokens_per_second"] > 0
