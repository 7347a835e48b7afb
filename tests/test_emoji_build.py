"""The build script's parts that need no download, and the PNG writer."""

from __future__ import annotations

import io
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from umarvel_hf.emoji import build, pack, png, selection
from umarvel_hf.emoji.pack import Concept


def picture(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGBA", (8, 8), colour).save(file, "PNG")
    return file.getvalue()


def thing(label: str, **changes: object) -> Concept:
    return replace(Concept(hex=label, label=label, family=label, group="animals-nature"), **changes)


def test_a_changed_source_is_refused(tmp_path: Path) -> None:
    (tmp_path / "emojione-2.2.7.tgz").write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"sha256 .*, expected 5fe0"):
        build.download("emojione@2.2.7", tmp_path)


def test_another_pillow_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "pillow_version", "1.1.7")
    with pytest.raises(RuntimeError, match=r"needs Pillow .*, this is 1\.1\.7"):
        build.build(tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("label", "hexcode", "family"),
    [
        ("man cook", "1F468-200D-1F373", "cook"),
        ("woman running", "1F3C3-200D-2640-FE0F", "person running"),
        ("dog face", "1F436", "dog"),
        ("red apple", "1F34E", "red apple"),
    ],
)
def test_men_women_and_faces_belong_to_the_family_of_their_kind(label: str, hexcode: str, family: str) -> None:
    labels = {"1F9D1-200D-1F373": "cook", "1F3C3": "person running"}
    assert selection.family_of(label, hexcode, labels) == family


def test_exchanged_tones_are_put_right_and_right_ones_stay() -> None:
    light, dark = picture("#eeeeee"), picture("#999999")
    artwork = {"1f44b-1f3fc": dark, "1f44b-1f3fd": light, "270a-1f3fc": light, "270a-1f3fd": dark}
    assert build.with_tones_in_order(artwork) == {
        "1f44b-1f3fc": light,
        "1f44b-1f3fd": dark,
        "270a-1f3fc": light,
        "270a-1f3fd": dark,
    }


def test_a_concept_without_art_in_every_style_lends_only_its_name() -> None:
    artwork = {style: {"whole": b""} for style in pack.STYLES}
    artwork["noto"]["partial"] = b""
    whole, partial = build.drawn([thing("whole", scene=True), thing("partial", scene=True)], artwork)
    assert (whole.styles, whole.scene) == (pack.STYLES, True)
    assert (partial.styles, partial.scene) == ((), False)


def test_a_gloss_comes_from_the_right_category_and_is_dropped_when_shared() -> None:
    index = "bat n 2 0 2 1 00000001 00000002  \nox n 1 0 1 1 00000003  \nyak n 1 0 1 1 00000004  "
    data = (
        '00000001 06 n 01 bat 0 000 | a club; "he swung"\n00000002 05 n 01 bat 0 000 | a flying mammal; "it flew"\n'
        "00000003 05 n 01 ox 0 000 | cattle\n00000004 05 n 01 yak 0 000 | cattle"
    )
    glosses = [concept.gloss for concept in build.add_glosses([thing("bat"), thing("ox"), thing("yak")], index, data)]
    assert glosses == ["a flying mammal", None, None]


def test_a_zip_is_the_same_bytes_every_time(tmp_path: Path) -> None:
    for name in ("one", "two"):
        build.write_zip(tmp_path / name, iter([("a.png", b"1"), ("b.png", b"2")]))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    with zipfile.ZipFile(tmp_path / "one") as archive:
        assert [info.compress_type for info in archive.infolist()] == [zipfile.ZIP_STORED] * 2


def test_records_keep_everything_that_is_not_the_default() -> None:
    concept = thing("cat", keywords=("pet", "feline"), gloss="feline mammal", scene=True, styles=("noto",))
    assert pack.from_record(pack.to_record(concept)) == concept
    assert "tone" not in pack.to_record(concept)


@pytest.mark.parametrize("size", [(64, 64), (300, 300)])
def test_a_written_png_is_read_back(size: tuple[int, int]) -> None:
    width, height = size
    pixels = bytes((x * y) % 3 for y in range(height) for x in range(width))
    content = png.encode(pixels, width, bytes([255, 0, 0, 0, 255, 0, 0, 0, 255]))
    assert len(content) > width * height  # stored, not compressed
    with Image.open(io.BytesIO(content)) as image:
        assert (image.mode, image.size, image.tobytes()) == ("P", size, pixels)
        assert image.convert("RGB").getpixel((1, 1)) == (0, 255, 0)
