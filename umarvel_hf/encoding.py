"""From items to vectors: batches of like lengths, media decoded ahead of the model, a picture of a batch seen once."""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from copy import copy, deepcopy
from pathlib import Path
from typing import Any, cast
from weakref import WeakKeyDictionary

import numpy as np

from umarvel_hf._torchvision import ensure_torchvision

ensure_torchvision()
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import batch_to_device, get_device_name
from torch.distributed.tensor import DTensor
from torch.nn.utils.rnn import pad_sequence

from umarvel_hf.hub import local_folder
from umarvel_hf.messages import placed
from umarvel_hf.packing import can_pack, embed_packed, packed_attention
from umarvel_hf.planning import TokenCounter, plan
from umarvel_hf.progress import Progress
from umarvel_hf.vision import patches_as_products, seen_once

logger = logging.getLogger(__name__)
_alone = threading.RLock()  # one encoding of a process at a time: tokenizer, attention and patches are set for as long
_tokenizing = threading.Lock()
_suffices: "WeakKeyDictionary[SentenceTransformer, int]" = WeakKeyDictionary()  # tokens that a device's memory held

# Of a batch: on a CPU more are no faster and hold more memory, anything else is kept busy by them.
TOKENS_ON_A_CPU, TOKENS_ELSEWHERE = 2_048, 16_384
AHEAD = 2  # batches decoded and waiting, beside one in every thread
MOST_THREADS = 8
PAYS = 1.5  # times as fast must another type multiply to be worth its rounding


def encode(
    model: SentenceTransformer | str | Path,
    items: Sequence[Any] | np.ndarray,
    *,
    prompt: str | None = None,
    prompt_name: str | None = None,
    batch_tokens: int | None = None,
    show_progress_bar: bool = False,
) -> np.ndarray:
    """Embed items: the vectors of ``SentenceTransformer.encode``, always (N, D), faster.

    Items of like lengths go together, counted in tokens before their media are decoded; texts alone are tokenized
    once; media are decoded and processed ahead of the model; a picture that a batch holds several times is seen once.

    Args:
        model: A loaded U-MARVEL checkpoint, or its folder or Hub id.
        items: Each a str (text), a ``pathlib.Path``, a PIL image, a uint8 array, a dict with ``text``, ``image`` or
            ``video``, or a chat; mixed as one likes. An array of str or of objects counts as a list.
        prompt: The instruction of all items.
        prompt_name: The name of an instruction that the checkpoint holds, such as ``"text-to-image"``.
        batch_tokens: Tokens of a batch, padding included; an item that has more is a batch of its own. It changes
            memory and speed, never a vector. None: 2,048 on a CPU, 16,384 elsewhere. Where a GPU's memory does not
            suffice it is halved, with a warning, for this model from then on, and encoding goes on.

    Returns:
        (N, D) float32, one vector of length 1 an item, in order; (0, D) for no items.

    Raises:
        ItemError (a ValueError): Names the index in ``items`` of the item that cannot be read, and what to do.
        TypeError: ``items`` is a single item.
        ValueError: ``batch_tokens`` below 1, an unknown ``prompt_name``, or a model of another kind.
    """
    if isinstance(model, str | Path):
        model = load(model)
    tokens = tokens_for(model.device, batch_tokens)
    given = listed(items)
    instruction = _instruction(model, prompt, prompt_name)
    if not given:
        return np.zeros((0, model.get_embedding_dimension() or 0), dtype=np.float32)
    with _alone:
        return _Encoding(model, given, instruction).run(tokens, show_progress_bar)


def load(
    model: str | Path, *, revision: str | None = None, dtype: str | torch.dtype | None = None, **kwargs: Any
) -> SentenceTransformer:
    """Load a U-MARVEL checkpoint (folder or Hub id) as ``SentenceTransformer``; ``kwargs`` as there.

    Args:
        revision: Branch, tag or commit of a repository; a commit pins weights and code.
        dtype: Of the weights. None: as they are stored; ``"auto"``: what this hardware multiplies fastest
            (:func:`fastest_dtype`); or a type, such as ``"bfloat16"``.

    Raises:
        ValueError: It is another kind of model.
        FileNotFoundError, PermissionError, ConnectionError: As in :func:`umarvel_hf.hub.local_folder`.
    """
    folder = local_folder(model, revision=revision, code=True)
    if dtype is not None:
        chosen = fastest_dtype(kwargs.get("device")) if dtype == "auto" else dtype
        kwargs["model_kwargs"] = {**(kwargs.get("model_kwargs") or {}), "dtype": chosen}
    embedder = SentenceTransformer(str(folder), trust_remote_code=True, **kwargs)
    if (kind := _kind(embedder)) != "umarvel":
        raise ValueError(
            f"{model} is no U-MARVEL checkpoint (its model type is {kind!r}). Make one of it: "
            f"`umarvel new {model} OUT`."
        )
    return embedder


def fastest_dtype(device: str | torch.device | None = None) -> torch.dtype:
    """The type in which a device multiplies matrices fastest, of those that trained weights keep their meaning in.

    On CUDA that is bfloat16 where it is native, on other accelerators float32. Processors differ: some that know
    bfloat16 are three times as fast in it, some half as fast, so on a CPU both are tried (for some ten milliseconds).
    """
    kind = torch.device(device or get_device_name()).type
    if kind == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float32
    if kind != "cpu":
        return torch.float32
    gain = _seconds_of_a_product(torch.float32) / _seconds_of_a_product(torch.bfloat16)
    return torch.bfloat16 if gain >= PAYS else torch.float32


def tokens_for(device: str | torch.device, batch_tokens: int | None = None) -> int:
    """Tokens of a batch: as they are told, or what suits a device.

    Raises:
        ValueError: They are told to be less than 1.
    """
    if batch_tokens is not None:
        if batch_tokens < 1:
            raise ValueError(f"batch_tokens is {batch_tokens}; give at least 1, or None for what suits the device.")
        return batch_tokens
    return TOKENS_ON_A_CPU if torch.device(device).type == "cpu" else TOKENS_ELSEWHERE


def can_encode(model: Any) -> bool:
    """Whether :func:`encode` takes a model: a U-MARVEL ``SentenceTransformer`` whose weights are whole on one device.

    What FSDP has split is computed in step by all ranks, which batches of one's own would break; what a ``device_map``
    has spread is brought together by hooks of the whole model, whose parts are called here.
    """
    if _kind(model) != "umarvel":
        return False
    weights = list(model.parameters())
    return len({one.device for one in weights}) == 1 and not any(isinstance(one, DTensor) for one in weights)


def _threads_for(device: torch.device) -> int:
    """Threads that process media; on a CPU the model itself takes all cores, and one is as much as there is to win."""
    return 1 if device.type == "cpu" else min(MOST_THREADS, os.cpu_count() or 1)


def _kind(model: Any) -> Any:
    try:
        return model[0].model.config.model_type
    except (AttributeError, IndexError, KeyError, TypeError):
        return None


def listed(items: Sequence[Any] | np.ndarray) -> list[Any]:
    """Items as a list, which a single one is not.

    Raises:
        TypeError: They are one item, or of no order.
    """
    if isinstance(items, np.ndarray) and items.dtype.kind in "UO":
        return list(items.tolist())
    # An array of pixels would fall into its rows, a set has no order.
    single = isinstance(items, str | dict) or hasattr(items, "__array__")
    if single or not hasattr(items, "__len__") or not hasattr(items, "__getitem__"):
        raise TypeError(f"items is a {type(items).__name__}; give a list of items, also for a single one.")
    return list(items)


def _instruction(model: SentenceTransformer, prompt: str | None, prompt_name: str | None) -> str | None:
    """The instruction as the host chooses it."""
    name = prompt_name or model.default_prompt_name
    if prompt is not None or name is None:
        return prompt
    if name not in model.prompts:
        raise ValueError(f"prompt_name is {name!r}, but the checkpoint holds {', '.join(map(repr, model.prompts))}.")
    return str(model.prompts[name])


class _Encoding:
    """One call of :func:`encode`."""

    def __init__(self, model: SentenceTransformer, items: list[Any], instruction: str | None) -> None:
        if not can_encode(model):
            raise ValueError(
                f"{type(model).__name__} is no U-MARVEL checkpoint in one piece; give what `load` returns."
            )
        self._model, self._module = model, cast(Any, model.eval()[0])
        self._inner = self._module.model
        self._items, self._instruction = items, instruction
        self._counted = TokenCounter(self._module).count(items, instruction)
        self._packed = can_pack(self._inner)
        self._threads = _threads_for(model.device)
        self._own = threading.local()

    def run(self, tokens: int, show_progress_bar: bool) -> np.ndarray:
        tokens = min(tokens, _suffices.get(self._model, tokens))
        left, done = np.arange(len(self._items)), np.zeros(len(self._items), dtype=bool)
        vectors: np.ndarray | None = None
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            stack.enter_context(patches_as_products(self._inner.vlm))
            if self._packed:
                stack.enter_context(packed_attention(self._inner))
            bar = stack.enter_context(Progress(total=len(left), desc="items", show=show_progress_bar))
            while len(left):
                try:
                    for batch, embedded in self._embedded(left, tokens):
                        if vectors is None:
                            vectors = np.empty((len(done), embedded.shape[1]), dtype=np.float32)
                        vectors[batch], done[batch] = embedded, True
                        bar.update(len(batch))
                except torch.OutOfMemoryError:
                    left = np.flatnonzero(~done)
                    tokens = self._halved(tokens, left)
                else:
                    break
                torch.cuda.empty_cache()  # by now nothing holds the batch that failed
        assert vectors is not None and done.all()
        return vectors

    def _halved(self, tokens: int, left: np.ndarray) -> int:
        """Half the tokens of a batch; where the longest item already was alone, the error stands."""
        longest = int(self._counted.counts[left].max())
        if tokens <= longest:
            raise
        tokens = _suffices[self._model] = max(tokens // 2, longest)
        logger.warning(
            "the device's memory does not hold a batch; %d items are left, now with batch_tokens=%d", len(left), tokens
        )
        return tokens

    def _embedded(self, left: np.ndarray, tokens: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Positions and vectors of every batch, in whatever order they are ready."""
        alone, is_text = self._counted.alone[left], np.array([self._counted.ids[at] is not None for at in left])
        texts, media = (
            deque(own[batch] for batch in plan(self._counted.counts[own], tokens, packed=self._packed))
            for own in (left[is_text], left[~is_text & ~alone])
        )
        media.extendleft(left[alone][:, None])
        if len(media) < 2:  # there is nothing to be ahead of
            for batch in media:
                yield batch, self._embed(self._preprocess(batch, self._module))
            media.clear()
        waiting: dict[Future[dict[str, Any]], np.ndarray] = {}
        threads = torch.get_num_threads()
        pool = ThreadPoolExecutor(min(self._threads, len(media) + 1), initializer=self._become_a_thread)
        try:
            while media or waiting or texts:
                while media and len(waiting) < self._threads + AHEAD:
                    batch = media.popleft()
                    waiting[pool.submit(self._preprocess, batch)] = batch
                ready = next((one for one in waiting if one.done()), None)
                if ready is not None:
                    yield waiting.pop(ready), self._embed(ready.result())
                elif texts:  # while nothing that was decoded waits
                    batch = texts.popleft()
                    yield batch, self._embed(self._padded(batch))
                else:
                    wait(waiting, return_when=FIRST_COMPLETED)
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)  # those of the pool set it for threads to come, too

    def _become_a_thread(self) -> None:
        torch.set_num_threads(1)
        self._own.module = self._module if self._threads == 1 else _for_a_thread(self._module)

    def _preprocess(self, batch: np.ndarray, module: Any = None) -> dict[str, Any]:
        """Decode and process the items of a batch."""
        given = [self._items[at] for at in batch]
        with placed(self._items, batch.tolist()):
            features: dict[str, Any] = (module or self._own.module).preprocess(given, prompt=self._instruction)
        return features

    def _padded(self, batch: np.ndarray) -> dict[str, Any]:
        """What the processor makes of texts, from the tokens that were counted."""
        tokenizer = self._module.processor.tokenizer
        side = tokenizer.padding_side
        rows = [torch.from_numpy(self._counted.ids[at]).long() for at in batch]
        ids = pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id, padding_side=side)
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side=side)
        return {"input_ids": ids, "attention_mask": mask, "modality": "message"}

    def _embed(self, features: dict[str, Any]) -> np.ndarray:
        """The vectors of a batch, (B, D) float32."""
        features = batch_to_device(features, self._model.device)
        if self._packed:
            features["sentence_embedding"] = embed_packed(self._inner, features)
            for module in list(self._model)[1:]:
                features = module(features)
        else:
            features = self._model(seen_once(self._inner.vlm, features))
        vectors: np.ndarray = features["sentence_embedding"].float().cpu().numpy()
        return vectors[:, : self._model.truncate_dim]


class _OneAtATime:
    """Mixed into a tokenizer that threads share: a fast one is told how to pad, then called, in two steps."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with _tokenizing:
            return super().__call__(*args, **kwargs)  # type: ignore[misc]


def _for_a_thread(module: Any) -> Any:
    """A module with a processor of its own, all but the tokenizer, of which a copy takes a second."""
    module, tokenizer = copy(module), module.processor.tokenizer
    shared = copy(tokenizer)
    shared.__class__ = type(type(tokenizer).__name__, (_OneAtATime, type(tokenizer)), {})
    module.processor = deepcopy(module.processor, {id(tokenizer): shared})
    return module


def _seconds_of_a_product(dtype: torch.dtype) -> float:
    left, right = torch.ones(512, 1024, dtype=dtype), torch.ones(1024, 1024, dtype=dtype)
    seconds = []
    for _ in range(4):
        started = time.perf_counter()
        torch.nn.functional.linear(left, right)
        seconds.append(time.perf_counter() - started)
    return min(seconds)
