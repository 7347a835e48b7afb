"""Pictures for tests."""

import numpy as np
from PIL import Image


def picture(width: int, height: int, seed: int) -> Image.Image:
    """Noise: every patch differs from every other."""
    pixels = np.random.default_rng(seed).integers(0, 256, size=(height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)
