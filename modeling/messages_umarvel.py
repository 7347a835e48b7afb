"""The one place where an item (text, picture, video, several of them, a chat) is checked and becomes a chat."""

import io
import mimetypes
import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

Message = dict[str, Any]
Reader = Callable[[Any], Any]
Readers = dict[str, Reader]

ROLES = ("system", "user", "assistant")
KINDS = ("text", "image", "video")
MEDIA = ("image", "video")
# A picture that is still to be read from its file is read by one thread; pictures share a lock by chance alone.
LOADING = [threading.Lock() for _ in range(61)]
URL = re.compile(r"^[a-zA-Z][a-zA-Z0-9+.-]*://|^data:")
ACCEPTED = (
    "a str (text), a pathlib.Path, a PIL image, a uint8 array, a dict with 'text', 'image' or 'video', or a list of "
    "chat messages"
)


class ItemError(ValueError):
    """An item that cannot be embedded.

    Args:
        index: Its place in the sequence given to :func:`to_conversations`.
        item: The item itself.
        reason: What is wrong with it and what to do.
    """

    def __init__(self, index: int, item: Any, reason: str) -> None:
        super().__init__(f"Item {index} ({_short(item)}): {reason}")
        self.index, self.item, self.reason = index, item, reason

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.index, self.item, self.reason)


def to_conversations(items: Sequence[Any], read_video: Reader, read_image: Reader | None = None) -> list[list[Message]]:
    """Bring every item to one chat: media decoded, in the order media then text; a chat keeps its own order.

    Args:
        items: See :data:`ACCEPTED`. Under ``image`` and ``video`` stand a path (str or Path), decoded pictures, or a
            list of them; under ``video`` also ``{"path": file, "num_frames": 12}`` or ``{"path": file, "fps": 2}``, for
            frames evenly spread. None under a key is the same as no key.
        read_video: Brings the value of a video (path, frames, array) to what shall stand in its place in the chat,
            such as (F, H, W, 3) uint8.
        read_image: The same of a picture; None: :func:`load_image`.

    Raises:
        ItemError: The first item that cannot be used; nothing is skipped or replaced.
    """
    conversations, readers = [], {"image": read_image or load_image, "video": read_video}
    for index, item in enumerate(items):
        try:
            conversations.append(_conversation(item, readers))
        except (ValueError, TypeError, OSError) as error:
            raise ItemError(index, item, str(error)) from error
    return conversations


def load_image(source: Any) -> Image.Image:
    """Decode one picture to RGB; a file is turned upright as its EXIF data says.

    Args:
        source: str or Path of a file, a PIL image, a uint8 array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), or
            ``{"bytes", "path"}``, as the datasets library keeps a picture inside a dict.

    Raises:
        ValueError, TypeError, OSError: What is wrong with it, and what to do.
    """
    if isinstance(source, dict) and source.keys() == {"bytes", "path"}:
        source = source["path"] if source["bytes"] is None else io.BytesIO(source["bytes"])
    if isinstance(source, str | Path):
        image = _open_image(existing_file(source))
    elif isinstance(source, io.BytesIO):
        image = _open_image(source)
    elif isinstance(source, Image.Image):
        image = source
    elif hasattr(source, "__array__"):
        image = _image_from_array(np.asarray(source))
    else:
        raise TypeError(f"a picture cannot be a {type(source).__name__}; give a path, a PIL image or a uint8 array.")
    try:
        with LOADING[id(image) % len(LOADING)]:
            image.load()  # of one that a caller has opened, and may have put into other threads' batches
    except OSError as error:
        raise ValueError(f"the picture cannot be decoded ({error}); replace or leave out the file.") from error
    if 0 in image.size:
        raise ValueError(f"a picture of {image.width} x {image.height} pixels holds nothing; leave it out.")
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        raise ValueError(f"a picture of mode {image.mode!r} has no known range; scale it to 8 bits first.")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def stack_frames(frames: Sequence[Any]) -> np.ndarray:
    """Decode frames (each as for :func:`load_image`) of one size and stack them to (F, H, W, 3) uint8."""
    pictures = [load_image(frame) for frame in frames]
    if not pictures:
        raise ValueError("a video without frames; leave it out.")
    sizes = sorted({picture.size for picture in pictures})
    if len(sizes) > 1:
        raise ValueError(f"frames of one video must have one size, found {sizes}; resize them first.")
    return np.stack([np.asarray(picture) for picture in pictures])


def _conversation(item: Any, readers: Readers) -> list[Message]:
    if isinstance(item, dict) and "role" in item:
        item = [item]
    if isinstance(item, list) and item and all(isinstance(message, dict) and "role" in message for message in item):
        messages = [_message(message, readers) for message in item]
    else:
        messages = [{"role": "user", "content": _parts(_as_dict(item), readers)}]
    spoken = [part for message in messages if message["role"] != "system" for part in message["content"]]
    if not any(part["type"] in MEDIA or part["text"].strip() for part in spoken):
        raise ValueError("it is empty; give some text, a picture or a video.")
    return messages


def _as_dict(item: Any) -> dict[str, Any]:
    if isinstance(item, dict):
        return item
    if isinstance(item, str):
        return {"text": item}
    if isinstance(item, Path):
        kind = mimetypes.guess_type(item.name)[0] or ""
        return {"video" if kind.startswith("video/") else "image": item}
    if isinstance(item, Image.Image):
        return {"image": item}
    if hasattr(item, "__array__"):
        return {"video" if np.ndim(item) == 4 else "image": item}
    raise TypeError(f"a {type(item).__name__} is not an item; give {ACCEPTED}.")


def _parts(item: dict[str, Any], readers: Readers) -> list[Message]:
    """The parts of a dict item: media first, then text, whatever the order of its keys."""
    unknown = [key for key in item if key not in KINDS]
    if unknown:
        raise ValueError(f"unknown key {unknown[0]!r}; the keys of an item are {', '.join(map(repr, KINDS))}.")
    parts = []
    for kind in (*MEDIA, "text"):
        parts += [_part(kind, value, readers) for value in _values(kind, item.get(kind))]
    return parts


def _values(kind: str, value: Any) -> list[Any]:
    """What stands under a key as a list; a list of pictures under ``video`` is one video's frames."""
    if value is None:
        return []
    if kind == "text" or not isinstance(value, list | tuple):
        return [value]
    if kind == "video" and value and not all(_is_video(entry) for entry in value):
        return [list(value)]
    return list(value)


def _is_video(entry: Any) -> bool:
    if isinstance(entry, str | Path):
        return not (mimetypes.guess_type(str(entry))[0] or "").startswith("image/")
    return isinstance(entry, dict | list)


def _message(message: Message, readers: Readers) -> Message:
    role, content = message["role"], message.get("content")
    if role not in ROLES:
        raise ValueError(f"role {role!r} is unknown; the roles of a chat are {', '.join(map(repr, ROLES))}.")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list):
        kind = type(content).__name__
        raise TypeError(f"the content of a {role} message is a {kind}; give a str or a list of parts.")
    parts = [_chat_part(part, readers) for part in content]
    if role == "system" and any(part["type"] in MEDIA for part in parts):
        raise ValueError("a system message is the instruction and holds text only; move the media to a user message.")
    return {"role": role, "content": parts}


def _chat_part(part: Any, readers: Readers) -> Message:
    if not isinstance(part, dict):
        raise TypeError(
            f"a part of a message is a {type(part).__name__}; give dicts such as {{'type': 'text', 'text': …}}."
        )
    given = {key: value for key, value in part.items() if key != "type" and value is not None}
    kind = part.get("type") or next(iter(given), None)
    if kind not in KINDS or list(given) not in ([kind], ["path"]):
        raise ValueError(
            f"a part of type {kind!r} with the keys {sorted(given)} is not understood; give "
            f"{{'type': KIND, KIND: value}} with KIND one of {', '.join(map(repr, KINDS))}."
        )
    return _part(kind, next(iter(given.values())), readers)


def _part(kind: str, value: Any, readers: Readers) -> Message:
    if kind in MEDIA:
        return {"type": kind, kind: readers[kind](existing_file(value) if isinstance(value, str | Path) else value)}
    if not isinstance(value, str):
        raise TypeError(f"text is a {type(value).__name__}; give a str.")
    return {"type": "text", "text": value}


def existing_file(source: str | Path) -> Path:
    """The path of a file that is there; a URL is refused.

    Raises:
        ValueError, FileNotFoundError: Which it is, and what to do.
    """
    if isinstance(source, str) and URL.match(source):
        raise ValueError(f"{source[:80]!r} is a URL, and nothing is fetched; download it and give its path.")
    path = Path(source)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"the file {str(path)!r} {what}; check the path (it is read from {Path.cwd()}).")
    return path


def _open_image(source: Path | io.BytesIO) -> Image.Image:
    path = source if isinstance(source, Path) else "a picture in memory"
    try:
        with Image.open(source) as image:
            image.load()
            return ImageOps.exif_transpose(image)
    except UnidentifiedImageError as error:
        raise ValueError(f"{str(path)!r} is not a picture that Pillow can read; convert or leave it out.") from error
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{str(path)!r} is damaged ({error}); replace or leave out the file.") from error


def _image_from_array(array: np.ndarray) -> Image.Image:
    shape = array.shape[:2] + tuple(channels for channels in array.shape[2:] if channels != 1)
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (len(shape) == 3 and shape[2] not in (3, 4)):
        raise ValueError(
            f"an array of shape {array.shape} and dtype {array.dtype} is not a picture; give uint8 (H, W), (H, W, 3) "
            "or (H, W, 4)."
        )
    if 0 in shape:
        raise ValueError(f"a picture of shape {array.shape} holds nothing; leave it out.")
    return Image.fromarray(np.ascontiguousarray(array.reshape(shape)))


def _short(item: Any) -> str:
    if isinstance(item, Image.Image):
        return f"a {item.mode} picture of {item.width} x {item.height}"
    if hasattr(item, "shape"):
        return f"an array of shape {tuple(item.shape)}"
    text = " ".join(repr(item).split())
    return text if len(text) <= 120 else f"{text[:60]}…{text[-59:]}"  # a path says most at its end
