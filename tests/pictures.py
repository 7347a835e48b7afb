"""Pictures and a film for tests."""

from pathlib import Path

import av
import numpy as np
from PIL import Image


def picture(width: int, height: int, seed: int) -> Image.Image:
    """Noise: every patch differs from every other."""
    pixels = np.random.default_rng(seed).integers(0, 256, size=(height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def write_film(path: Path, frames: int = 16, **options: str) -> Path:
    """4 frames a second of a square that walks to the right. ``options`` are those of the container."""
    with av.open(path, "w", options=options) as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        container.start_encoding()
        for at in range(frames):
            pixels = np.full((64, 64, 3), 240, dtype=np.uint8)
            pixels[24:40, 3 * at : 3 * at + 16] = (200, 30, 30)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path
