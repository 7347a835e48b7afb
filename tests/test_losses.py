"""InfoNCE by hand, cached and not, on one process and on two."""

import copy
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
from umarvel_hf.encoding import load
from umarvel_hf.trainer.losses import InfoNCE, similarity_of


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
        assert loss.contrast([embeddings] * columns).item() == pytest.approx(expected, rel=1e-6)


def test_two_right_answers_at_a_right_angle(loss):
    eye = torch.eye(2)
    assert loss.contrast([eye, eye]).item() == pytest.approx(math.log(1 + math.exp(-1 / 0.5)), rel=1e-6)
    assert loss.contrast([eye, eye.flip(0)]).item() == pytest.approx(math.log(1 + math.exp(1 / 0.5)), rel=1e-6)


def test_every_query_sees_all_positives_and_all_hard_negatives(loss):
    queries, positives, first, second = (random_unit(3, 8, seed=seed) for seed in range(4))
    rows = list(zip(queries, positives, strict=True))

    def negatives_of(at):
        return [positives[other] for other in range(3) if other != at] + list(first) + list(second)

    computed = loss.contrast([queries, positives, first, second])
    assert computed.item() == pytest.approx(by_hand(rows, negatives_of, 0.5), rel=1e-5)


def test_known_positives_are_left_out_by_id(loss):
    queries, positives, hard = (random_unit(5, 8, seed=seed) for seed in range(3))
    rows = list(zip(queries, positives, strict=True))
    ids = torch.tensor([
        [1, 10, -1],
        [1, 11, -1],  # the query of row 0 once more
        [2, 10, -1],  # the positive of row 0 once more
        [3, 12, 13],  # 13 is a further positive of it
        [4, 13, -1],
    ])  # fmt: skip
    left_out = {0: {1, 2}, 1: {0}, 2: {0}, 3: {4}, 4: set()}

    def negatives_of(at):
        return [positives[other] for other in range(5) if other != at and other not in left_out[at]] + list(hard)

    computed = loss.contrast([queries, positives, hard], ids)
    assert computed.item() == pytest.approx(by_hand(rows, negatives_of, 0.5), rel=1e-5)
    everything = by_hand(rows, lambda at: [p for other, p in enumerate(positives) if other != at] + list(hard), 0.5)
    assert loss.contrast([queries, positives, hard]).item() == pytest.approx(everything, rel=1e-5)
    assert everything > computed.item() + 1e-3


def test_a_row_whose_other_candidates_are_all_known_costs_nothing(loss):
    embeddings = random_unit(3, 8)
    ids = torch.tensor([[1, 10], [1, 11], [1, 12]])
    assert loss.contrast([embeddings, embeddings.flip(0)], ids).item() == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize(
    "ids", [torch.zeros(3), torch.zeros(3, 1, dtype=torch.long), torch.zeros(3, 2)], ids=["flat", "narrow", "float"]
)
def test_labels_of_another_shape_are_refused(loss, ids):
    with pytest.raises(ValueError, match=r"give integers \(B, 2 \+ P\): qid, did"):
        loss.contrast([random_unit(3, 8)] * 2, ids)


def test_a_column_of_queries_alone_is_refused(loss):
    with pytest.raises(ValueError, match="a column of queries and one of positives, got 1"):
        loss.contrast([random_unit(3, 8)])


def test_a_mini_batch_holds_a_row_at_least(model):
    with pytest.raises(ValueError, match="mini_batch_size is 0; give at least 1"):
        InfoNCE(model, mini_batch_size=0)


def test_a_model_without_a_temperature_is_refused():
    with pytest.raises(ValueError, match="Linear, holds no learned temperature"):
        similarity_of(torch.nn.Sequential(torch.nn.Linear(2, 2)))


def test_the_gradient_of_the_temperature_is_that_of_a_difference_quotient(loss, model):
    queries, positives = random_unit(4, 8), random_unit(4, 8, seed=1)
    loss.contrast([queries, positives]).backward()
    parameter = similarity_of(model).log_temperature
    values = []
    for step in (-1e-3, 1e-3):
        with torch.no_grad():
            parameter.fill_(math.log(0.5) + step)
            values.append(loss.contrast([queries, positives]).item())
    assert parameter.grad.item() == pytest.approx((values[1] - values[0]) / 2e-3, rel=1e-3)


def test_logits_are_float32_under_autocast(loss):
    queries = random_unit(4, 8)
    exact = loss.contrast([queries, queries])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        computed = loss.contrast([queries, queries])
    assert computed.dtype == torch.float32 and computed.item() == exact.item()


@pytest.fixture(scope="module")
def columns(pictures):
    """Seven rows of a mix: text, pictures, both, two pictures; one column with an instruction."""
    queries = ["a dog", pictures[0], {"image": pictures[1], "text": "a"}, "a bench", {"image": pictures[:2]}, "c", "d"]
    positives = [
        {"image": pictures[2], "text": "b"},
        "two",
        pictures[0],
        "e",
        pictures[1],
        {"image": pictures[1:]},
        "f",
    ]
    return queries, positives, positives[::-1]


def gradients(model, columns, mini_batch_size, ids=None):
    model.zero_grad(set_to_none=True)
    prompts = ["Find it.", None, None]
    # Collated as the trainer does, for a batch that is used twice must not be changed by its first use.
    batch = [model.preprocess(column, prompt=prompt) for column, prompt in zip(columns, prompts, strict=True)]
    value = InfoNCE(model, mini_batch_size)(copy.deepcopy(batch), ids)
    value.backward()
    return value.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("mini_batch_size", [1, 2, 3, 7])
def test_cached_gradients_are_those_of_the_whole_batch(model, columns, mini_batch_size):
    ids = torch.tensor([[at, 10 + at % 6] for at in range(7)])
    value, expected = gradients(model, columns, None, ids)
    cached_value, cached = gradients(model, columns, mini_batch_size, ids)
    assert cached_value == pytest.approx(value, rel=1e-5)
    assert cached.keys() == expected.keys() and any("log_temperature" in name for name in cached)
    for name, gradient in expected.items():
        assert_close(cached[name], gradient, rtol=1e-3, atol=1e-5 * max(1.0, gradient.abs().max().item()), msg=name)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "qwen2_vl"])
def test_cached_gradients_are_right_for_every_backbone(checkpoints, columns, family):
    model = load(checkpoints(family))
    value, expected = gradients(model, columns, None)
    cached_value, cached = gradients(model, columns, 2)
    assert cached_value == pytest.approx(value, rel=1e-5)
    assert cached.keys() == expected.keys()
    for name, gradient in expected.items():
        assert_close(cached[name], gradient, rtol=1e-3, atol=1e-5 * max(1.0, gradient.abs().max().item()), msg=name)


def test_two_ranks_with_four_rows_train_as_one_with_eight(checkpoint, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        ranks = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    # accelerate 1.15 and sentence-transformers 6.2 use names that torch 2.13 has deprecated.
    warnings = [*WARNINGS_ARE_ERRORS, "-W", "ignore:`broadcast_buffers` is deprecated:FutureWarning"]
    warnings += ["-W", "ignore:torch.distributed.nn.functional.all_gather is deprecated:FutureWarning"]
    command = [sys.executable, *warnings, train_on_ranks.__file__, str(checkpoint), str(tmp_path), "4"]
    running = []
    for rank in ("0", "1"):
        environment = os.environ | ranks | {"RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": "1"}
        out = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        running.append(subprocess.Popen(command, env=environment, **out))
    one = train_on_ranks.train(checkpoint, tmp_path / "one", rows_a_rank=8)
    for process in running:
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
    before = dict(load(checkpoint).named_parameters())
    temperature = next(name for name in before if name.endswith("log_temperature"))
    for caching, trained in one.items():
        two = [load_file(tmp_path / f"{caching}-{rank}.safetensors") for rank in (0, 1)]
        for name, parameter in trained.items():
            assert torch.equal(two[0][name], two[1][name]), name
            assert_close(two[0][name], parameter, rtol=1e-4, atol=1e-5, msg=name)
        assert (trained[temperature] - before[temperature]).abs() > 1e-3
        assert sum((parameter - before[name]).abs().max() > 1e-4 for name, parameter in trained.items()) > 10
