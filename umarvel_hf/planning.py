"""Batches by tokens: how many each item will have, known before its media are decoded, and which go together."""

import io
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from umarvel_hf._torchvision import ensure_torchvision

ensure_torchvision()
from umarvel_hf.chat_template import control_tokens
from umarvel_hf.modeling.messages_umarvel import load_image, to_conversations
from umarvel_hf.modeling.sentence_transformers_umarvel import (
    FRAMES_PER_SECOND,
    av,
    film_clock,
    film_of,
    pictures_of,
    sampled_frames,
)

TURNED = (5, 6, 7, 8)  # EXIF orientations that swap width and height
PADDING = 0.05  # of a batch, at most
SMALL = 16  # below this part of a budget a batch is filled whatever the padding
UNPACKED = 4  # times the tokens of a batch may its padded states be
MOST_KNOWN = 65_536  # sizes whose tokens are remembered
TOKENIZED_AT_ONCE = 4096
PROBE = " \u0011 "  # a text that a template leaves as it is, if it leaves any


@dataclass(frozen=True)
class Size:
    """Of a picture (frames 0) or a film of so many sampled frames, whose places and rate are its clock."""

    height: int
    width: int
    frames: int = 0
    places: tuple[int, ...] = ()
    rate: float = 0.0


@dataclass(frozen=True)
class Counted:
    """What is known of items before their media are decoded.

    Args:
        counts: (N,) int64, tokens of every item.
        ids: Of every item that is text alone, its tokens, (T,) int32; of the others None, and of all where a module
            has settings of its own for its processor.
        alone: (N,) bool, items that the processor must get one at a time: films, where it stacks those of a batch.
    """

    counts: np.ndarray
    ids: list[np.ndarray | None]
    alone: np.ndarray


class TokenCounter:
    """Counts the tokens of items as a checkpoint's processor will write them: text, and a picture by its size alone.

    Args:
        module: The first module of a U-MARVEL ``SentenceTransformer``.
    """

    def __init__(self, module: Any) -> None:
        self._module, self._processor = module, module.processor
        films = getattr(self._processor, "video_processor", None)
        self._stacks_films = films is not None and "video_grid_thw" not in films.model_input_names
        self._known: dict[tuple[Size, ...], int] = {}  # tokens of pictures or of a film of these sizes
        self._control = re.compile("|".join(map(re.escape, [PROBE, *control_tokens(self._processor)])))

    def count(self, items: Sequence[Any], prompt: str | None = None) -> Counted:
        """Count the tokens of items under an instruction.

        Of a file the header is read, and of a film that does not tell how many frames it has all of it. Media that
        cannot be read count as nothing here: they are refused, by name, when they are decoded.

        Raises:
            ItemError: An item that is none, by its place.
        """
        chats = to_conversations(items, read_video=self._film_size, read_image=picture_size)
        media = [
            [part[part["type"]] for message in chat for part in message["content"] if part["type"] != "text"]
            for chat in chats
        ]
        texts = self._rendered(chats, prompt)
        bos = self._processor.tokenizer.bos_token
        begun = bool(bos and texts and texts[0].startswith(bos))
        tokenize = partial(self._processor.tokenizer, add_special_tokens=not begun, verbose=False)
        ids: list[np.ndarray | None] = []
        counts = np.empty(len(items), dtype=np.int64)
        for start in range(0, len(texts), TOKENIZED_AT_ONCE):
            for own in tokenize(texts[start : start + TOKENIZED_AT_ONCE])["input_ids"]:
                sizes = media[len(ids)]
                counts[len(ids)] = len(own) + self._tokens([size for size in sizes if size])
                ids.append(None if sizes or self._module.processing_kwargs else np.array(own, dtype=np.int32))
        alone = np.array([self._stacks_films and any(size.frames for size in sizes if size) for sizes in media], bool)
        longest = self._module.max_seq_length  # where a tokenizer knows none, a number beyond all integers
        if longest is not None and len(items) and counts.max() > longest:
            counts = np.minimum(counts, longest)
            ids = [None if own is None or len(own) > longest else own for own in ids]  # the processor cuts these
        return Counted(counts, ids, alone)

    def _rendered(self, chats: list[list[dict[str, Any]]], prompt: str | None) -> list[str]:
        """The text of every chat. The template is run once for all that differ in one plain text only."""
        frames: dict[tuple[str, ...], tuple[str, str] | None] = {}
        rendered = []
        for chat in chats:
            parts = chat[0]["content"]
            kinds = (chat[0]["role"], *(part["type"] for part in parts))
            text = parts[-1].get("text")
            if len(chat) > 1 or kinds.count("text") != 1 or not text or self._control.search(text):
                rendered.append(self._render(chat, prompt))
                continue
            if kinds not in frames:
                frame = self._render([{**chat[0], "content": [*parts[:-1], {"type": "text", "text": PROBE}]}], prompt)
                frames[kinds] = tuple(frame.split(PROBE)) if frame.count(PROBE) == 1 else None  # type: ignore[assignment]
            around = frames[kinds]
            rendered.append(self._render(chat, prompt) if around is None else f"{around[0]}{text}{around[1]}")
        return rendered

    def _render(self, chat: list[dict[str, Any]], prompt: str | None) -> str:
        if prompt:
            (chat,) = self._module.input_formatter.prepend_prompt_to_messages([chat], prompt)
        template = self._processor.chat_template
        (text,) = self._processor.apply_chat_template([chat], tokenize=False, chat_template=template)
        return str(text)

    def _tokens(self, sizes: Sequence[Size]) -> int:
        """Tokens that stand for the pictures and films of an item, above those of their placeholders."""
        pictures = tuple(size for size in sizes if not size.frames)
        with suppress(ValueError):  # the processor refuses them, and will again when the item's turn comes
            return sum(self._remembered(own) for own in (pictures, *((size,) for size in sizes if size.frames)) if own)
        return 0

    def _remembered(self, sizes: tuple[Size, ...]) -> int:
        clocked = sizes[0].frames and self._writes_clocks
        key = sizes if clocked else tuple(replace(size, places=(), rate=0.0) for size in sizes)
        if key not in self._known:
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            measure = self._measure_film if sizes[0].frames else self._measure_pictures
            self._known[key] = measure(*sizes)
        return self._known[key]

    @cached_property
    def _writes_clocks(self) -> bool:
        """Whether the processor writes beside frames when they are shown: later ones in longer numbers."""
        early, late = (Size(224, 224, 4, tuple(range(0, 4 * step, step)), 1.0) for step in (1, 9_999))
        return self._measure_film(early) != self._measure_film(late)

    def _measure_pictures(self, *sizes: Size) -> int:
        if hasattr(self._processor.image_processor, "merge_size"):  # patches of one grid a picture, whatever is beside
            told = self._processor._get_num_multimodal_tokens(image_sizes=[(one.height, one.width) for one in sizes])
            return sum(told.num_image_tokens) - len(sizes)
        blanks = [Image.new("RGB", (one.width, one.height)) for one in sizes]
        return self._processed(self._processor.image_token * len(sizes), images=[blanks])

    def _measure_film(self, size: Size) -> int:
        frames = np.zeros((size.frames, size.height, size.width, 3), dtype=np.uint8)
        clock = film_clock(size.frames, size.rate) | {"frames_indices": list(size.places)}
        settings = {"do_sample_frames": False, "video_metadata": [clock]}
        return self._processed(self._processor.video_token, videos=[[frames]], videos_kwargs=settings)

    def _processed(self, placeholder: str, **media: Any) -> int:
        """By how many tokens a blank picture or film lengthens its placeholder: true of any processor."""
        ids = self._processor(text=[placeholder], return_tensors="pt", **media)["input_ids"][0]
        return len(ids) - len(self._processor.tokenizer(placeholder)["input_ids"])

    def _film_size(self, source: Any) -> Size | None:
        sampler = getattr(self._processor, "video_processor", None)
        with suppress(Exception):  # whatever is wrong with it is told when it is decoded
            if (film := film_of(source)) is not None:
                path, asked = film
                with av.open(str(path)) as container:
                    stream = pictures_of(container)
                    clock, wanted = sampled_frames(container, asked, sampler)
                    return Size(stream.height, stream.width, len(wanted), tuple(wanted), clock["fps"])
            frames = source["array"] if isinstance(source, dict) else source
            first = load_image(frames[0])
            told = source.get("video_metadata") if isinstance(source, dict) else None
            clock = told or film_clock(len(frames), FRAMES_PER_SECOND)
            return Size(first.height, first.width, len(frames), tuple(clock["frames_indices"]), clock["fps"])
        return None


def picture_size(source: Any) -> Size | None:
    """The size of a picture as it will be seen; of a file, from its header. None: it cannot be read."""
    with suppress(Exception):  # whatever is wrong with it is told when it is decoded
        if isinstance(source, dict):
            source = source["path"] if source["bytes"] is None else io.BytesIO(source["bytes"])
        if isinstance(source, str | Path | io.BytesIO):
            with Image.open(source) as image:
                turned = image.getexif().get(ExifTags.Base.Orientation) in TURNED
                return Size(*(image.size if turned else image.size[::-1]))
        height, width = source.size[::-1] if isinstance(source, Image.Image) else np.shape(source)[:2]
        return Size(height, width) if height and width else None
    return None


def plan(counts: np.ndarray, batch_tokens: int, *, packed: bool = False) -> list[np.ndarray]:
    """Cut items, longest first, into batches that hold at most so many tokens, or one item.

    Args:
        counts: Tokens of every item, (N,).
        batch_tokens: With padding. A batch ends early where padding would be more than a twentieth of it.
        packed: Nothing is padded before the states are pooled: what counts is the sum, and that padded states are no
            more than four times as many.

    Returns:
        Positions of the items of every batch; every position once.
    """
    order = np.argsort(-counts, kind="stable")
    batches, start, tokens = [], 0, 0
    for end, count in enumerate(counts[order].tolist()):
        rows, longest = end - start + 1, int(counts[order[start]])
        held = tokens + count if packed else rows * longest
        padding = 0.0 if packed else 1 - (tokens + count) / max(held, 1)
        wide = packed and rows * longest > UNPACKED * batch_tokens
        full = held > batch_tokens or wide or (padding > PADDING and held > batch_tokens / SMALL)
        if full and rows > 1:
            batches.append(order[start:end])
            start, tokens = end, 0
        tokens += count
    return [*batches, order[start:]] if len(order) else []
