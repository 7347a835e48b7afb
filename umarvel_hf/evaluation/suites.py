"""The zero-shot sets as a table: which files, which fields, what is asked and found, the prompt, the metric.

Files, prompts and metrics are those of the reference (recipe.md §10); ``evaluation/zeroshot.py`` reads and measures
them all. Paths count from one folder that holds every set, as the reference's ``data/`` does.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from umarvel_hf.evaluation.suite_files import Reader, Schema, csv_records, json_records, numbered_files
from umarvel_hf.evaluation.suite_readers import (
    ccneg_entries,
    circo_queries,
    fashioniq_sessions,
    mmeb_rows,
    msvd_captions,
    visdial_dialogs,
    vist_photos,
    vist_stories,
)

T2I = "Find me an everyday image that matches the given caption."
I2T = "Find an image caption describing the following everyday image."
CIR = "I'm looking for a similar everyday image with the described changes."
CHANGE = (
    "I want you to retrieve an similar image with the described changes. Show me an image that best captures the "
    "following the described changes."
)
FOCUS = (
    "I want you to retrieve an image with the same attributes as described. Show me an image that best captures the "
    "following the same attributes."
)
DIALOG = "Find me an everyday image that matches the given dialog."
ROUNDS = "Find me a similar fashion image based on the following multi-round modifications."
CAPTION_OF = "Find an image caption describing the following image."
VIDEO = "Find an everyday video match with caption."
FASHIONIQ_PICTURE = "M-BEIR/mbeir_images/fashioniq_images/{}.jpg"
GENECIS = ("change_object", "focus_object", "change_attribute", "focus_attribute")
SUGARCREPE = ("add_att", "add_obj", "replace_att", "replace_obj", "replace_rel", "swap_att", "swap_obj")

# MMEB's sets by what they ask; the first ones of each are in-distribution for models that were trained on MMEB.
I_T, T_I, IT_T, IT_I = "image → text", "text → image", "image+text → text", "image+text → image"
MMEB_KINDS: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "classification": (
        {"ImageNet-1K": I_T, "N24News": IT_T, "HatefulMemes": I_T, "VOC2007": I_T, "SUN397": I_T},
        {"Place365": I_T, "ImageNet-A": I_T, "ImageNet-R": I_T, "ObjectNet": I_T, "Country211": I_T},
    ),
    "VQA": (
        dict.fromkeys(("OK-VQA", "A-OKVQA", "DocVQA", "InfographicsVQA", "ChartQA", "Visual7W"), IT_T),
        dict.fromkeys(("ScienceQA", "VizWiz", "GQA", "TextVQA"), IT_T),
    ),
    "retrieval": (
        {
            "VisDial": T_I, "CIRR": IT_I, "VisualNews_t2i": T_I, "VisualNews_i2t": I_T, "MSCOCO_t2i": T_I,
            "MSCOCO_i2t": I_T, "NIGHTS": "image → image", "WebQA": "text → image+text",
        },
        {
            "FashionIQ": IT_I, "Wiki-SS-NQ": T_I, "OVEN": "image+text → image+text", "EDIS": "text → image+text",
        },
    ),
    "grounding": (
        {"MSCOCO": IT_I},
        {"RefCOCO": IT_I, "RefCOCO-Matching": "image+text → image+text", "Visual7W-Pointing": IT_I},
    ),
}  # fmt: skip
MMEB = {subset: words for kinds in MMEB_KINDS.values() for kind in kinds for subset, words in kind.items()}
MMEB_MEANS = {
    **{name: (*seen, *unseen) for name, (seen, unseen) in MMEB_KINDS.items()},
    "in-distribution": tuple(subset for seen, _ in MMEB_KINDS.values() for subset in seen),
    "out-of-distribution": tuple(subset for _, unseen in MMEB_KINDS.values() for subset in unseen),
    "MMEB": tuple(MMEB),
}

R_1_5_10 = ("hit@1", "hit@5", "hit@10")
ACCURACY = ("accuracy",)
CIRCO_METRICS = tuple(f"{name}@{k}" for name in ("capped_map", "target_hit") for k in (5, 10, 25, 50))


@dataclass(frozen=True)
class Shape:
    """What is encoded of a record, as templates (``str.format``) over its fields; "" is nothing.

    Args:
        image, video: A file, below the folder of all sets.
        frames: Of a video: ``num_frames`` or ``fps``, see ``modeling/sentence_transformers_umarvel.py``.
        chat: A field with the parts of a chat, ``("text", …)`` and ``("image", …)``; ``image`` is then the template of
            the latter.
        formatted: The text is normalised as M-BEIR's texts are.
        either: Text or picture may be missing.
    """

    text: str = ""
    image: str = ""
    video: str = ""
    frames: Mapping[str, float] = field(default_factory=dict)
    chat: str = ""
    instruction: str = ""
    formatted: bool = False
    either: bool = False


@dataclass(frozen=True)
class Source:
    """A file and what its records must be.

    Args:
        path: Below the folder of all sets; ``{split}`` stands for the split.
        fields: From the number of a record and what stands there to what shapes and relations name; None: the fields of
            the schema, or, where that is only ``dict``, what the reader made.
    """

    path: str
    read: Reader
    schema: Schema
    fields: Callable[[int, Any], dict[str, Any]] | None = None


@dataclass(frozen=True)
class SuiteTask:
    """One thing that a set asks for.

    Args:
        part: What tells it from the set's other tasks; "" where it is the only one.
        type: In words, such as ``text → image``.
        relation: ``pairs``: query and candidate are two sides of a record, and the same file is the same thing.
            ``pool``: the field ``right`` names candidates, which the records of ``pool`` have as ``did``; ``excluded``
            those that do not count for this query. ``choice``: the field ``options`` holds the candidates of this query
            alone, the right one first; a tie with it counts as wrong.
        metrics: The first is the one to report.
        size: Queries of the whole set, where that is known.
    """

    part: str
    type: str
    source: Source
    query: Shape
    candidate: Shape
    relation: Literal["pairs", "pool", "choice"]
    metrics: tuple[str, ...]
    pool: Source | None = None
    size: int | None = None


@dataclass(frozen=True)
class Suite:
    """A set.

    Args:
        splits: The first is taken unless told otherwise.
        means: Parts whose plain mean is reported, by its name.
        hidden: A split whose answers its authors keep: a file to hand in to them is written.
    """

    title: str
    tasks: tuple[SuiteTask, ...]
    splits: tuple[str, ...] = ("test",)
    means: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    hidden: str = ""


def task_name(suite: str, part: str) -> str:
    """How results and ``--tasks`` call a task: ``circo``, ``sugarcrepe_swap_att``."""
    return f"{suite}_{part}" if part else suite


def _both_ways(
    source: Source, shown: Shape, said: Shape, shown_to_say: Shape, said_to_say: Shape, *, texts: int, images: int
) -> tuple[SuiteTask, ...]:
    """Text → image with the first two shapes, image → text with the last two."""
    return (
        SuiteTask("t2i", "text → image", source, said, shown, "pairs", R_1_5_10, size=texts),
        SuiteTask("i2t", "image → text", source, shown_to_say, said_to_say, "pairs", R_1_5_10, size=images),
    )


def _five_a_picture(number: int, text: str) -> dict[str, Any]:
    return {"text": text, "image": number // 5}


def _genecis(name: str, instruction: str) -> SuiteTask:
    """A task of GeneCIS; those of attributes show crops, whose files are numbered within their sample."""
    picture, kind = "genecis/val2017/{val_image_id:012d}.jpg", dict[str, Schema](val_image_id=int)
    if name.endswith("attribute"):
        picture, kind = "genecis/vg/" + name + "/{image_id}_{sample}_{crop}.jpg", {"image_id": object}

    def fields(number: int, value: Any) -> dict[str, Any]:
        shown = [value["reference"], value["target"], *value["gallery"]]
        crops = [{**one, "sample": number, "crop": at} for at, one in enumerate(shown)]
        return {**crops[0], "condition": value["condition"], "options": crops[1:]}

    schema = {"condition": str, "reference": kind, "target": kind, "gallery": [kind]}
    source = Source(f"genecis/annotations/{name}.json", json_records(), schema, fields)
    query = Shape(text="{condition}", image=picture, instruction=instruction, formatted=True)
    metrics = ("hit@1", "hit@2", "hit@3")
    return SuiteTask(name, "image+text → image", source, query, Shape(image=picture), "choice", metrics)


def _sugarcrepe(part: str) -> SuiteTask:
    def fields(_: int, value: Any) -> dict[str, Any]:
        options = [{"text": value["caption"]}, {"text": value["negative_caption"]}]
        return {"filename": value["filename"], "options": options}

    schema = {"filename": str, "caption": str, "negative_caption": str}
    source = Source(f"sugar-crepe/data/{part}.json", json_records(), schema, fields)
    asked = CAPTION_OF if part in SUGARCREPE[:4] else ""  # as the reference has it, for whatever reason
    query = Shape(image="sugar-crepe/images/val2017/{filename}", instruction=asked)
    return SuiteTask(part, "image → text", source, query, Shape(text="{text}"), "choice", ACCURACY)


def _mmeb(subset: str) -> SuiteTask:
    source = Source(f"MMEB-eval/{subset}/{subset}_test.jsonl", mmeb_rows(subset), dict)
    either = Shape(text="{text}", image="{image}", either=True)
    query = replace(either, instruction="{instruction}")
    return SuiteTask(subset, MMEB[subset], source, query, either, "choice", ACCURACY)


_FLICKR = Source("flickr/flickr_text.json", json_records(), str, _five_a_picture)
_COCO = Source("coco/coco_text.json", json_records(), str, _five_a_picture)
_SHAREGPT4V = Source("sharegpt4v/datas_for_validation.json", json_records(), {"image_name": str, "caption": str})
_URBAN1K = Source("Urban1k/caption", numbered_files, {"number": int, "text": str})
_SHAREGPT4V_SIDES = Shape(image="sharegpt4v/val_data/{image_name}"), Shape(text="{caption}", instruction=T2I)
_URBAN1K_SIDES = Shape(image="Urban1k/image/{number}.jpg", instruction=I2T), Shape(text="{text}")
_COCO_SIDES = Shape(image="coco/coco_images/{image}.png"), Shape(text="{text}")
_FLICKR_PICTURE = "flickr/images/{image}.png"


ZERO_SHOT: dict[str, Suite] = {
    "flickr30k": Suite(
        "Flickr30k",
        _both_ways(
            _FLICKR,
            Shape(image=_FLICKR_PICTURE), Shape(text="{text}", instruction=T2I, formatted=True),
            Shape(image=_FLICKR_PICTURE, instruction=I2T), Shape(text="{text}"), texts=5_000, images=1_000,
        ),
    ),
    "coco5k": Suite("COCO 5k", _both_ways(_COCO, *_COCO_SIDES, *_COCO_SIDES, texts=25_000, images=5_000)),
    "sharegpt4v": Suite(
        "ShareGPT4V",
        _both_ways(_SHAREGPT4V, *_SHAREGPT4V_SIDES, *_SHAREGPT4V_SIDES, texts=1_000, images=1_000),
        ("val",),
    ),
    "urban1k": Suite("Urban1K", _both_ways(_URBAN1K, *_URBAN1K_SIDES, *_URBAN1K_SIDES, texts=1_000, images=1_000)),
    "circo": Suite(
        "CIRCO",
        (
            SuiteTask(
                "", "image+text → image",
                Source("circo/annotations/{split}.json", circo_queries, dict),
                Shape(
                    image="circo/images/unlabeled2017/{reference_img_id:012d}.jpg", text="{relative_caption}",
                    instruction=CIR,
                ),
                Shape(image="circo/images/unlabeled2017/{file_name}"),
                "pool", CIRCO_METRICS,
                Source(
                    "circo/annotations/image_info_unlabeled2017.json", json_records("images"),
                    {"id": int, "file_name": str},
                    lambda _, value: {"did": value["id"], "file_name": value["file_name"]},
                ),
                size=220,
            ),
        ),
        ("val", "test"),
        hidden="test",
    ),
    "genecis": Suite(
        "GeneCIS",
        tuple(_genecis(name, FOCUS if name == "focus_attribute" else CHANGE) for name in GENECIS),
        ("val",),
        {"GeneCIS": GENECIS},
    ),
    "visdial": Suite(
        "VisDial",
        (
            SuiteTask(
                "", "text → image",
                Source("visdial/visdial_1.0_val.json", visdial_dialogs, dict),
                Shape(text="{text}", instruction=DIALOG),
                Shape(image="visdial/VisualDialog_val2018/VisualDialog_val2018_{image_id:012d}.jpg"),
                "pairs", R_1_5_10,
            ),
        ),
        ("val",),
    ),
    "vist": Suite(
        "VIST",
        (
            SuiteTask(
                "", "story → image", Source("vist/sis/val.story-in-sequence.json", vist_stories, dict),
                Shape(chat="parts", image="{}"), Shape(image="{image}"), "pool", R_1_5_10,
                Source("vist/sis/val.story-in-sequence.json", vist_photos, dict),
            ),
        ),
        ("val",),
    ),
    "mt-fashioniq": Suite(
        "Multi-turn FashionIQ",
        (
            SuiteTask(
                "", "rounds → image",
                Source("multiturnfashion/data/all.val.json", fashioniq_sessions, dict),
                Shape(chat="parts", image=FASHIONIQ_PICTURE, instruction=ROUNDS),
                Shape(image=FASHIONIQ_PICTURE.replace("{}", "{did}")),
                "pool", ("hit@5", "hit@8", "hit@10"),
                Source(
                    "multiturnfashion/image_splits/split.all.val.json", json_records(), str,
                    lambda _, name: {"did": name},
                ),
            ),
        ),
        ("val",),
    ),
    "cc-neg": Suite(
        "CC-Neg",
        (
            SuiteTask(
                "", "image → text", Source("ccneg/ccneg_preprocessed.pt", ccneg_entries, dict),
                Shape(image="{image}"), Shape(text="{text}"), "choice", ACCURACY, size=40_000,
            ),
        ),
    ),
    "sugarcrepe": Suite(
        "SugarCrepe", tuple(_sugarcrepe(part) for part in SUGARCREPE), means={"SugarCrepe": SUGARCREPE}
    ),
    "msr-vtt": Suite(
        "MSR-VTT",
        (
            SuiteTask(
                "", "text → video",
                Source(
                    "msrvtt/annotations/MSRVTT_JSFUSION_test.csv", csv_records, {"video_id": str, "sentence": str}
                ),
                Shape(text="{sentence}", instruction=VIDEO),
                Shape(video="msrvtt/videos/{video_id}.mp4", frames={"fps": 2.0}),
                "pairs", R_1_5_10, size=1_000,
            ),
        ),
    ),
    "msvd": Suite(
        "MSVD",
        (
            SuiteTask(
                "", "text → video", Source("MSVD/test_list.txt", msvd_captions, dict),
                Shape(text="{text}", instruction=VIDEO),
                Shape(video="MSVD/YouTubeClips/{video}.avi", frames={"num_frames": 12}),
                "pairs", R_1_5_10,
            ),
        ),
    ),
    "mmeb": Suite("MMEB", tuple(_mmeb(subset) for subset in MMEB), means=MMEB_MEANS),
}  # fmt: skip
