"""Import torchvision where its C++ operators do not load.

PyPI's torchvision is built for CUDA. Beside a CPU-only torch its operators do not load, ``import torchvision`` raises
``operator torchvision::nms does not exist``, and with it every model and processor of transformers. Only the transforms
are needed, and those are Python: declaring the operators that the import looks up is enough.

This file can go when ``import torchvision`` succeeds beside the CPU build of every torch that pyproject.toml allows;
tests/test_torchvision.py skips itself there.
"""

import io
import sys
from enum import Enum
from pathlib import Path

_declared: list[object] = []  # torch forgets operators whose Library is garbage-collected


def ensure_torchvision() -> None:
    """Make ``import torchvision`` work. Call this before the first import from transformers; again does no harm.

    Does nothing where torchvision imports by itself or is not installed.
    """
    try:
        import torchvision  # noqa: F401
    except ImportError:
        return
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
        _import_without_operators()


def _import_without_operators() -> None:
    import torch

    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]  # left half-way by the import that failed
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(library)

    import torchvision.io

    torchvision.io.decode_image = _decode_image  # what transformers calls for an image given as a path


def _decode_image(input: object, mode: Enum | str = "RGB", apply_exif_orientation: bool = False) -> object:
    """``torchvision.io.decode_image`` by Pillow, for the one mode transformers asks for.

    Args:
        input: a path, or a (bytes,) uint8 tensor holding the encoded file.

    Returns:
        (3, height, width) uint8 tensor.
    """
    import torch
    from PIL import Image, ImageOps
    from torchvision.transforms.functional import pil_to_tensor

    name = mode.name if isinstance(mode, Enum) else mode.upper()
    if name != "RGB":
        raise ValueError(f"torchvision's image operators did not load; without them mode is 'RGB' only, got {name!r}.")
    source = io.BytesIO(input.numpy().tobytes()) if isinstance(input, torch.Tensor) else Path(str(input))
    with Image.open(source) as image:
        upright = ImageOps.exif_transpose(image) if apply_exif_orientation else image
        return pil_to_tensor(upright.convert("RGB"))
