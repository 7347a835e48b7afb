"""Reads the pack: one zip of sprites per drawing style and one line of ``concepts.jsonl`` per emoji."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TRAINED_STYLES = ("noto", "twemoji", "emojione")
HELD_OUT_STYLE = "fluent"
STYLES = (*TRAINED_STYLES, HELD_OUT_STYLE)
SPRITE_SIZE = 64
SCENE_SPRITE_SIZE = 30


@dataclass(frozen=True)
class Concept:
    """One emoji. ``styles`` is empty for those that only lend their name to a pool of texts."""

    hex: str
    label: str
    family: str
    group: str
    kind: str = "thing"  # or "hand" (comes in skin tones), "person" (in skin tones and genders)
    keywords: tuple[str, ...] = ()
    gloss: str | None = None
    tone: str | None = None
    gender: str | None = None
    scene: bool = False
    styles: tuple[str, ...] = STYLES


@dataclass(frozen=True)
class Sprite:
    """Palette pixels, row by row: ``pixels[y * size + x]`` is an index of ``palette``, three bytes a colour."""

    size: int
    pixels: bytes
    palette: bytes


@cache
def concepts() -> tuple[Concept, ...]:
    """Every record of the pack, in its order."""
    with (HERE / "concepts.jsonl").open(encoding="utf-8") as lines:
        return tuple(from_record(json.loads(line)) for line in lines)


def to_record(concept: Concept) -> dict[str, Any]:
    """What ``concepts.jsonl`` says of a concept: whatever is not the default."""
    values = {field.name: getattr(concept, field.name) for field in fields(concept)}
    return {field.name: values[field.name] for field in fields(concept) if values[field.name] != field.default}


def from_record(record: dict[str, Any]) -> Concept:
    """A concept from its line of ``concepts.jsonl``."""
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in record.items()
    }
    return Concept(**values)


class Pack:
    """The sprites, decoded when asked for. Use as a context manager: it holds the zips open."""

    def __init__(self) -> None:
        self._zips = {style: zipfile.ZipFile(HERE / f"{style}.zip") for style in STYLES}
        self._sprites: dict[tuple[str, str, int], Sprite] = {}

    def __enter__(self) -> Pack:
        return self

    def __exit__(self, *_: object) -> None:
        for archive in self._zips.values():
            archive.close()

    def sprite(self, style: str, hexcode: str, size: int = SPRITE_SIZE) -> Sprite:
        """The drawing of ``hexcode`` in ``style``, at 64 or (scene concepts only) 30 pixels."""
        key = (style, hexcode, size)
        if key not in self._sprites:
            self._sprites[key] = decode(self._zips[style].read(sprite_name(hexcode, size)), size)
        return self._sprites[key]


def decode(png: bytes, size: int) -> Sprite:
    """A sprite from its PNG file, which has a palette and ``size`` × ``size`` pixels."""
    from PIL import Image

    with Image.open(io.BytesIO(png)) as image:
        palette = image.getpalette("RGB")
        assert image.mode == "P" and image.size == (size, size) and palette
        return Sprite(size, image.tobytes(), bytes(palette))


def sprite_name(hexcode: str, size: int) -> str:
    """Name of a sprite inside the archive of its style."""
    return f"{size}/{hexcode}.png"
