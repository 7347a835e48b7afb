"""What pictures cost: each is seen once, and patches are embedded as the matrix product that they are."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

COLUMNS = {"image": ("pixel_values", "image_grid_thw"), "video": ("pixel_values_videos", "video_grid_thw")}


def seen_once(vlm: nn.Module, features: dict[str, Any], *, all_seen: bool = False) -> dict[str, Any]:
    """Features in which pictures, or films, that are there several times went through the vision tower once.

    Pixels are replaced by what the tower says, under the host's ``mm_encoder_outputs``. Batches without repetitions
    stay as they are, unless all are to be seen here; so do those of processors that do not flatten pixels into patches
    and of backbones that take no such outputs.
    """
    there = {kind: names for kind, names in COLUMNS.items() if names[0] in features}
    flat = all(grid in features and features[pixels].ndim == 2 for pixels, grid in there.values())
    if not there or not flat or "mm_encoder_outputs" not in inspect.signature(vlm.forward).parameters:
        return features
    places = {kind: distinct(features[pixels], features[grid]) for kind, (pixels, grid) in there.items()}
    if not all_seen and all(len(first) == len(which) for first, which in places.values()):
        return features
    outputs = {  # of all kinds, as the host takes pixels or outputs, not some of each
        kind: _look(vlm, kind, features[pixels], features[grid], *places[kind])
        for kind, (pixels, grid) in there.items()
    }
    kept = {name: value for name, value in features.items() if not name.startswith("pixel_values")}
    return kept | {"mm_encoder_outputs": outputs}


def distinct(pixels: Tensor, grids: Tensor) -> tuple[list[int], list[int]]:
    """Which pictures differ.

    Args:
        pixels: (P, F), patches of all pictures one after the other.
        grids: (N, 3), patches of every picture in time, height and width.

    Returns:
        Of all that differ the first place of each, and for every picture (N) which of these it is.
    """
    pieces = pixels.split(grids.prod(dim=1).tolist())
    marks = torch.stack([_mark(piece) for piece in pieces]).tolist()
    known: dict[tuple[Any, ...], list[int]] = {}
    first: list[int] = []
    which: list[int] = []
    for at, (shape, mark) in enumerate(zip(grids.tolist(), marks, strict=True)):
        alike = known.setdefault((*shape, mark), [])
        same = next((one for one in alike if torch.equal(pieces[first[one]], pieces[at])), None)
        if same is None:
            same = len(first)
            alike.append(same)
            first.append(at)
        which.append(same)
    return first, which


def _mark(pixels: Tensor) -> Tensor:
    """A number that is the same for the same pixels, and seldom for others."""
    some = pixels[:: max(1, len(pixels) // 16)].contiguous()
    return some.view(torch.int16).sum(dtype=torch.int64)


def _look(vlm: Any, kind: str, pixels: Tensor, grids: Tensor, first: list[int], which: list[int]) -> Any:
    """The tower's output for all pictures, computed for the first of each."""
    pieces = pixels.split(grids.prod(dim=1).tolist())
    look = getattr(vlm, f"get_{kind}_features")
    output = look(torch.cat([pieces[at] for at in first]), grids[first], return_dict=True)
    output.pooler_output = [output.pooler_output[at] for at in which]
    if getattr(output, "deepstack_features", None) is not None:
        output.deepstack_features = [[layer[at] for at in which] for layer in output.deepstack_features]
    return output


@contextmanager
def patches_as_products(vlm: nn.Module) -> Iterator[None]:
    """Embed patches by a matrix product where a convolution meets patches of exactly its own size.

    The same sums; a CPU's convolution takes seven times as long for them.
    """
    kinds = (nn.Conv2d, nn.Conv3d)
    found = [one for one in vlm.modules() if type(one) in kinds and one.groups == 1 and "forward" not in vars(one)]
    for one in found:
        one.forward = partial(_patches, one)
    try:
        yield
    finally:
        for one in found:
            del one.forward


def _patches(convolution: Any, pixels: Tensor) -> Tensor:
    if pixels.shape[2:] != convolution.kernel_size or any(convolution.padding):
        convolved: Tensor = type(convolution).forward(convolution, pixels)
        return convolved
    weight = convolution.weight.flatten(1)
    product = nn.functional.linear(pixels.flatten(1), weight, convolution.bias)
    return product.reshape(*product.shape, *[1] * len(convolution.kernel_size))
