"""Muon beside AdamW: each trains its own parameters as it would alone, and a run goes on from either's state."""

from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.optim import AdamW, Muon
from torch.optim.lr_scheduler import LambdaLR

from umarvel_hf.trainer.muon import MuonAdamW, with_muon


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(5, 8), nn.Linear(8, 4), nn.LayerNorm(4))


def optimizer_of(network, learning_rate=0.02):
    groups = [
        {"params": [network[0].weight, network[1].weight], "weight_decay": 0.1},
        {"params": [network[1].bias, *network[2].parameters()], "weight_decay": 0.0},
    ]
    return MuonAdamW(with_muon(groups, network, learning_rate), lr=0.01, betas=(0.9, 0.98))


def steps(network, optimizers, count, schedule=lambda step: 1.0):
    schedulers = [LambdaLR(one, schedule) for one in optimizers]
    for step in range(count):
        network(torch.tensor([step % 5, 1, 2, 3, 4])).pow(2).mul(torch.arange(4)).sum().backward()
        for one in (*optimizers, *schedulers):
            one.step()
        network.zero_grad()


def test_matrices_of_linear_layers_are_muons_and_nothing_else_is(network):
    by_muon = [group for group in optimizer_of(network).param_groups if group.get("muon")]
    assert [one is network[1].weight for group in by_muon for one in group["params"]] == [True]
    assert [(group["lr"], group["weight_decay"]) for group in by_muon] == [(0.02, 0.1)]
    everything = [one for group in optimizer_of(network).param_groups for one in group["params"]]
    assert {id(one) for one in everything} == {id(one) for one in network.parameters()} and len(everything) == 5


def test_each_steps_as_it_would_alone_and_follows_the_schedule(network):
    together, apart = network, nn.Sequential(nn.Embedding(5, 8), nn.Linear(8, 4), nn.LayerNorm(4))
    apart.load_state_dict(together.state_dict())
    muon = Muon([apart[1].weight], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    rest = [{"params": [apart[0].weight], "weight_decay": 0.1}]
    rest.append({"params": [apart[1].bias, *apart[2].parameters()], "weight_decay": 0.0})
    steps(together, [optimizer_of(together)], 4, lambda step: 1 / (step + 1))
    steps(apart, [muon, AdamW(rest, lr=0.01, betas=(0.9, 0.98))], 4, lambda step: 1 / (step + 1))
    for one, other in zip(together.parameters(), apart.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_matrix_steps_by_a_fifth_of_the_rate_a_weight(network):
    # Its four singular values would be 1, and its 32 weights have a root mean square of 8 ** -0.5, before the scaling.
    before = network[1].weight.detach().clone()
    groups = with_muon([{"params": list(network.parameters()), "weight_decay": 0.0}], network, 0.02)
    steps(network, [MuonAdamW(groups, lr=0.0)], 1)
    moved = (network[1].weight - before).detach()
    assert moved.pow(2).mean().sqrt().item() == pytest.approx(0.2 * 0.02, rel=0.3)  # Newton-Schulz is not exact


def test_it_goes_on_from_its_state(network):
    copy = nn.Sequential(nn.Embedding(5, 8), nn.Linear(8, 4), nn.LayerNorm(4))
    first = optimizer_of(network)
    steps(network, [first], 3)
    copy.load_state_dict(network.state_dict())
    second = optimizer_of(copy)
    second.load_state_dict(deepcopy(first.state_dict()))
    assert [group["lr"] for group in second.param_groups] == [group["lr"] for group in first.param_groups]
    steps(network, [first], 2, lambda step: 0.5)
    steps(copy, [second], 2, lambda step: 0.5)
    for one, other in zip(network.parameters(), copy.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_closure_is_refused(network):
    with pytest.raises(ValueError, match="compute the loss before the step"):
        optimizer_of(network).step(lambda: 0.0)


def test_adapters_alone_are_trained_by_muon_alone(network):
    matrix = network[1].weight
    before = matrix.detach().clone()
    optimizer = MuonAdamW(with_muon([{"params": [matrix]}], network, 0.02), lr=0.01)
    network(torch.arange(5)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(matrix, before)
    optimizer.load_state_dict(optimizer.state_dict())
    assert [group["lr"] for group in optimizer.param_groups] == [0.02]


def test_a_group_with_a_rate_of_its_own_stays_with_adamw(network):
    more = nn.Linear(4, 4, bias=False)
    groups = [{"params": [network[1].weight]}, {"params": [more.weight], "lr": 0.003}]
    divided = with_muon(groups, nn.Sequential(network, more), 0.02)
    assert [(group["lr"], group.get("muon", False)) for group in divided] == [(0.02, True), (0.003, False)]
    assert divided[1]["params"][0] is more.weight


def test_nothing_for_muon_is_refused(network):
    with pytest.raises(ValueError, match=r"muon_learning_rate is 0\.02, but no linear layer is left for it"):
        with_muon([{"params": [network[0].weight]}], network, 0.02)
