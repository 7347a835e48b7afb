"""Several devices as one encoder: a process on each, which takes the next part of the work when it is free."""

from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any, cast

import numpy as np

from umarvel_hf._torchvision import ensure_torchvision

ensure_torchvision()
from sentence_transformers import SentenceTransformer

from umarvel_hf.encoding import encode, fastest_dtype, listed, load, tokens_for
from umarvel_hf.messages import placed
from umarvel_hf.planning import TokenCounter, plan
from umarvel_hf.progress import Progress
from umarvel_hf.search import Encoder

BATCHES = 8  # of a part: so many that a process decodes ahead, so few that none waits long for the last
WAITING = 2  # parts sent to every process ahead

_here: dict[str, SentenceTransformer] = {}  # of a process: its model


class DeviceEncoder:
    """An encoder on several devices, such as two GPUs, each with the whole model. Use it in ``with``.

    Parts are handed out as processes are free, those of the longest items first, so that all end together. Processes
    import the script that starts them, so a script does its work under ``if __name__ == "__main__":``.

    Args:
        model: Folder or Hub id, which every process loads; the weights wait on the CPU for checksums.
        devices: Such as ``["cuda:0", "cuda:1"]``; one process for each.
        batch_tokens: As in :func:`umarvel_hf.encoding.encode`.
        kwargs: As in :func:`umarvel_hf.encoding.load`.

    Raises:
        ValueError: No devices, ``batch_tokens`` below 1, or no U-MARVEL checkpoint.
        FileNotFoundError, PermissionError, ConnectionError: As in :func:`umarvel_hf.hub.local_folder`.
    """

    def __init__(
        self, model: str | Path, devices: Sequence[str], *, batch_tokens: int | None = None, **kwargs: Any
    ) -> None:
        if not devices:
            raise ValueError("devices are none; name at least one, such as 'cuda:0'.")
        self._batch_tokens = tokens_for(devices[0], batch_tokens)
        if kwargs.get("dtype") == "auto":  # of the devices, not of the CPU that holds the weights here
            kwargs["dtype"] = fastest_dtype(devices[0])
        self.model = load(model, device="cpu", **kwargs)
        self._count, context = len(devices), get_context("spawn")
        names: SimpleQueue[str] = context.SimpleQueue()
        for device in devices:
            names.put(device)
        self._pool = ProcessPoolExecutor(
            len(devices), mp_context=context, initializer=_load, initargs=(str(model), names, kwargs)
        )

    def __enter__(self) -> "DeviceEncoder":
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def encode(
        self, inputs: Sequence[Any], *, prompt: str | None = None, show_progress_bar: bool | None = None
    ) -> np.ndarray:
        """The vectors of :func:`umarvel_hf.encoding.encode`, (N, D) float32, in the order of the items.

        Raises:
            ItemError: Names the place of an item that cannot be read.
            TypeError: ``inputs`` is a single item.
            BrokenProcessPool: A process died, as where memory ran out, or where a script does its work on import.
        """
        items = listed(inputs)
        vectors = np.empty((len(items), self.model.get_embedding_dimension() or 0), dtype=np.float32)
        counts = TokenCounter(self.model[0]).count(items, prompt).counts
        parts = iter(plan(counts, BATCHES * self._batch_tokens))
        waiting: dict[Future[np.ndarray], np.ndarray] = {}
        with Progress(total=len(items), desc="items", show=show_progress_bar) as bar, _cancelling(waiting):
            while True:
                while len(waiting) < WAITING * self._count and (part := next(parts, None)) is not None:
                    given = [items[at] for at in part]
                    waiting[self._pool.submit(_encode, given, prompt, self._batch_tokens)] = part
                if not waiting:
                    return vectors
                for done in wait(waiting, return_when=FIRST_COMPLETED).done:
                    part = waiting.pop(done)
                    with placed(items, part.tolist()):
                        vectors[part] = done.result()
                    bar.update(len(part))


@contextmanager
def _cancelling(waiting: dict[Future[np.ndarray], np.ndarray]) -> Iterator[None]:
    try:
        yield
    finally:
        for future in waiting:
            future.cancel()


def _load(model: str, names: "SimpleQueue[str]", kwargs: dict[str, Any]) -> None:
    _here["model"] = load(model, device=names.get(), **kwargs)


def _encode(items: list[Any], prompt: str | None, batch_tokens: int) -> np.ndarray:
    return encode(_here["model"], items, prompt=prompt, batch_tokens=batch_tokens)


@contextmanager
def open_encoder(
    model: str | Path, device: Sequence[str] | None = None, dtype: str | None = None, batch_tokens: int | None = None
) -> Iterator[tuple[Encoder, int | None]]:
    """A model on its device or devices, and the tokens of a batch where it is told them by each call.

    Args:
        model: Folder or Hub id.
        device: One or several; None: the best there is.
        dtype: As in :func:`umarvel_hf.encoding.load`.
        batch_tokens: As in :func:`umarvel_hf.encoding.encode`.
    """
    if device is None or len(device) == 1:
        yield cast(Encoder, load(model, device=device[0] if device else None, dtype=dtype)), batch_tokens
        return
    with DeviceEncoder(model, device, batch_tokens=batch_tokens, dtype=dtype) as encoder:
        yield encoder, None
