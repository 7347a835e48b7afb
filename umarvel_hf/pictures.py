"""Which pictures can be used: they open, and processors take their shape."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

from PIL.Image import Image

from umarvel_hf.messages import load_image

AT_ONCE = 4096  # pictures handed to the threads
NARROWEST = 200  # the ratio of sides


def open_picture(picture: Any) -> Image:
    """Open a picture to embed.

    Raises:
        OSError, TypeError, ValueError: It does not open, or it is so narrow that Qwen's processors refuse it.
    """
    image = load_image(picture)
    if max(image.size) > NARROWEST * min(image.size):
        shown = "A picture" if isinstance(picture, Image) else repr(str(picture))
        raise ValueError(
            f"{shown} is {image.width} × {image.height} pixels; processors refuse what is over {NARROWEST} times as "
            "long as wide. Crop it or leave it out."
        )
    return image


def picture_problems(pictures: Iterable[Any]) -> Iterator[str | None]:
    """What is wrong with each picture, in order; None where :func:`open_picture` takes it."""
    rest = iter(pictures)
    with ThreadPoolExecutor() as threads:  # decoding frees the interpreter
        while some := list(islice(rest, AT_ONCE)):
            yield from threads.map(_problem, some)


def _problem(picture: Any) -> str | None:
    try:
        open_picture(picture)
    except (OSError, TypeError, ValueError) as error:
        return str(error)
    return None
