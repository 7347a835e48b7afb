"""Muon for the weights of linear layers and AdamW for all others, as one optimizer."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from torch.optim import AdamW, Muon, Optimizer

Groups = list[dict[str, Any]]


class MuonAdamW(Optimizer):
    """``torch.optim.Muon`` on some groups of parameters and ``torch.optim.AdamW`` on the others.

    Muon makes a matrix's step orthogonal (https://kellerjordan.github.io/posts/muon); scaled as in
    https://arxiv.org/abs/2502.16982 it is, per weight, about as long as one of AdamW at the same learning rate.

    Args:
        groups: Of either kind; those with ``muon: True`` hold only matrices.
        adamw: Further arguments of AdamW.
    """

    def __init__(self, groups: Groups, **adamw: Any) -> None:
        by_muon = [group for group in groups if group.get("muon")]
        others = [group for group in groups if not group.get("muon")]
        self.parts: dict[str, Optimizer] = {"muon": Muon(by_muon, adjust_lr_fn="match_rms_adamw")}
        if others:  # adapters may be all that is trained
            self.parts["adamw"] = AdamW(others, **adamw)
        super().__init__([group for part in self.parts.values() for group in part.param_groups], {})

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step of both."""
        if closure is not None:
            raise ValueError("Two optimizers cannot share one closure; compute the loss before the step.")
        for part in self.parts.values():
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """The states of both."""
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        for name, part in self.parts.items():
            part.load_state_dict(state_dict[name])
        # Loading made new ones.
        self.param_groups = [group for part in self.parts.values() for group in part.param_groups]


def with_muon(groups: Iterable[dict[str, Any]], model: nn.Module, learning_rate: float) -> Groups:
    """Groups of parameters, in which the weights of linear layers stand in groups for Muon, at a rate of their own.

    A group that has a learning rate already, as ``learning_rate_mapping`` gives one, is left to AdamW.

    Raises:
        ValueError: No weight of a linear layer is left for Muon.
    """
    linear = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    divided: Groups = []
    for group in groups:
        matrices = [] if "lr" in group else [one for one in group["params"] if id(one) in linear]
        theirs = {id(one) for one in matrices}
        divided.append({**group, "params": [one for one in group["params"] if id(one) not in theirs]})
        if matrices:
            divided.append({**group, "params": matrices, "lr": learning_rate, "muon": True})
    if not any(group.get("muon") for group in divided):
        raise ValueError(
            f"muon_learning_rate is {learning_rate}, but no linear layer is left for it: all are frozen, or "
            "learning_rate_mapping gives them rates of their own. Leave it out, or leave it one."
        )
    return [group for group in divided if group["params"]]
