"""The operations that a Qwen2-VL needs at least: of tokens and patches, nothing padded, nothing computed twice."""

from collections.abc import Iterable
from typing import Any

from torch import nn


class Operations:
    """Counts two for every weight that a token or a patch meets, and the products of attention.

    Args:
        vlm: A ``Qwen2VLModel``.
    """

    def __init__(self, vlm: Any) -> None:
        text, tower = vlm.config.get_text_config(), vlm.visual
        layers = [one for one in vlm.get_decoder().modules() if isinstance(one, nn.Linear)]
        merged = {one for one in tower.merger.modules() if isinstance(one, nn.Linear)}
        others = [one for one in tower.modules() if isinstance(one, nn.Linear | nn.Conv3d) and one not in merged]
        self._token, self._patch = 2 * _weights(layers), 2 * _weights(others)
        self._patch += 2 * _weights(merged) / tower.spatial_merge_size**2
        self._tokens_attend = 4 * text.hidden_size * text.num_hidden_layers
        self._patches_attend = 4 * tower.config.embed_dim * tower.config.depth

    def of_tokens(self, count: float, pairs: float) -> float:
        """Of the decoder, for so many tokens and pairs of them that attend."""
        return self._token * count + self._tokens_attend * pairs

    def of_patches(self, counts: Iterable[float]) -> float:
        """Of the vision tower, for pictures and frames of so many patches each."""
        return sum(self._patch * count + self._patches_attend * count**2 for count in counts)


def _weights(layers: Iterable[Any]) -> int:
    return sum(one.weight.numel() for one in layers)
