"""The zero-shot sets as a table: which files, which fields, what is asked and found, the prompt, the metric.

Files, prompts and metrics are those of the reference (recipe.md §10); ``evaluation/zeroshot.py`` reads and measures
them all. Paths count from one folder that holds every set, as the reference's ``data/`` does.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from umarvel_hf.evaluation.suite_files import (
    Reader,
    Record,
    Schema,
    checked,
    csv_records,
    json_lines,
    json_records,
    numbered_files,
    pickled_data,
    tensor_file,
    text_lines,
)
from umarvel_hf.records import format_string

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
STORY = (
    "I will provide you with a series of images and captions from a story, and I need you to retrieve the image "
    "corresponding to the last caption."
)
CCNEG_LAST = 40_000  # entries of the file that are the test set
VIST_KINDS = ("jpg", "png", "gif")
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
    """

    text: str = ""
    image: str = ""
    video: str = ""
    frames: Mapping[str, float] = field(default_factory=dict)
    chat: str = ""
    instruction: str = ""
    formatted: bool = False


@dataclass(frozen=True)
class Source:
    """A file and what its records must be; ``fields`` brings a record to the fields that shapes and relations name.

    Args:
        path: Below the folder of all sets; ``{split}`` stands for the split.
        fields: From the number of a record and what stands there. It may give ``left_out``, why a record is not asked.
    """

    path: str
    read: Reader
    schema: Schema
    fields: Callable[[int, Any], dict[str, Any]]


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
    """

    part: str
    type: str
    source: Source
    query: Shape
    candidate: Shape
    relation: Literal["pairs", "pool", "choice"]
    metrics: tuple[str, ...]
    pool: Source | None = None


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


def _itself(_: int, value: Any) -> dict[str, Any]:
    return dict(value)


def _both_ways(
    source: Source, shown: Shape, said: Shape, shown_to_say: Shape, said_to_say: Shape
) -> tuple[SuiteTask, ...]:
    """Text → image with the first two shapes, image → text with the last two."""
    return (
        SuiteTask("t2i", "text → image", source, said, shown, "pairs", R_1_5_10),
        SuiteTask("i2t", "image → text", source, shown_to_say, said_to_say, "pairs", R_1_5_10),
    )


def _five_a_picture(number: int, text: str) -> dict[str, Any]:
    return {"text": text, "image": number // 5}


def _compositions(path: Path) -> Iterator[Record]:
    """CIRCO's queries; those of the test split name no answer."""
    asked: dict[str, Schema] = {"id": int, "reference_img_id": int, "relative_caption": str}
    answers = {} if path.stem == "test" else {"gt_img_ids": [int], "target_img_id": int}
    for record in json_records()(path):
        value = checked(record, asked | answers)
        right = {"right": value["gt_img_ids"], "target": value["target_img_id"]} if answers else {}
        yield Record(record.place, {**value, "qid": value["id"], **right})


def _genecis(name: str, instruction: str) -> SuiteTask:
    """A task of GeneCIS; those of attributes show crops, whose files are numbered within their sample."""
    picture, kind = "genecis/val2017/{val_image_id:012d}.jpg", dict[str, Schema](val_image_id=int)
    if name.endswith("attribute"):
        picture, kind = "genecis/vg/" + name + "/{image_id}_{sample}_{crop}.jpg", {"image_id": object}

    def fields(number: int, value: Any) -> dict[str, Any]:
        shown = [value["reference"], value["target"], *value["gallery"]]
        crops = [{**one, "sample": number, "crop": at} for at, one in enumerate(shown)]
        return {"condition": value["condition"], **crops[0], "options": crops[1:]}

    schema = {"condition": str, "reference": kind, "target": kind, "gallery": [kind]}
    source = Source(f"genecis/annotations/{name}.json", json_records(), schema, fields)
    query = Shape(text="{condition}", image=picture, instruction=instruction, formatted=True)
    metrics = ("hit@1", "hit@2", "hit@3")
    return SuiteTask(name, "image+text → image", source, query, Shape(image=picture), "choice", metrics)


def _dialogs(path: Path) -> Iterator[Record]:
    """VisDial's dialogs, with the questions and answers that they name by number."""
    said = {kind: [checked(one, str) for one in json_records("data", kind)(path)] for kind in ("questions", "answers")}
    for record in json_records("data", "dialogs")(path):
        value = checked(record, {"image_id": int, "dialog": [{"question": int, "answer": int}]})
        rounds = []
        for at, turn in enumerate(value["dialog"]):
            for kind in said:
                if not 0 <= (number := turn[kind[:-1]]) < len(said[kind]):
                    raise ValueError(
                        f"{record.place}: dialog[{at}].{kind[:-1]} is {number}, but there are {len(said[kind])} {kind}."
                    )
            rounds.append(f"Q: {said['questions'][turn['question']]}? A: {said['answers'][turn['answer']]}.")
        yield Record(record.place, {"image_id": value["image_id"], "text": " ".join(rounds)})


def _stories(path: Path) -> Iterator[Record]:
    """VIST's stories: the intro, then of each step its caption and picture, of the last one the caption."""
    stories: dict[str, list[Record]] = {}
    for record in json_records("annotations")(path):
        (step, *_) = checked(record, ({"story_id": str, "photo_flickr_id": str, "text": str},))
        stories.setdefault(step["story_id"], []).append(Record(record.place, step))
    for story, steps in stories.items():
        pictures = {one.value["photo_flickr_id"]: _photo(path, one.value["photo_flickr_id"]) for one in steps}
        missing = sorted(photo for photo, file in pictures.items() if file is None)
        if missing:
            yield Record(steps[0].place, {"left_out": f"story {story} has no picture {missing[0]}"})
            continue
        parts: list[tuple[str, str | None]] = [("text", f"{STORY} ")]
        for one in steps[:-1]:
            parts += [("text", one.value["text"]), ("image", pictures[one.value["photo_flickr_id"]])]
        last = steps[-1].value
        seen = [one.value["photo_flickr_id"] for one in steps[:-1]]
        yield Record(
            steps[0].place,
            {"parts": [*parts, ("text", last["text"])], "right": [last["photo_flickr_id"]], "excluded": seen},
        )


def _photos(path: Path) -> Iterator[Record]:
    """The pictures of VIST's stories, each once; those that are not there, which some stories lack, are left out."""
    known = set()
    for record in json_records("annotations")(path):
        (step, *_) = checked(record, ({"photo_flickr_id": str},))
        photo = step["photo_flickr_id"]
        if photo not in known and (file := _photo(path, photo)) is not None:
            known.add(photo)
            yield Record(record.place, {"did": photo, "image": file})


def _photo(path: Path, photo: str) -> str | None:
    names = (f"vist/images/val/{photo}.{kind}" for kind in VIST_KINDS)
    return next((name for name in names if (path.parents[2] / name).is_file()), None)


def _rounds(_: int, value: Any) -> dict[str, Any]:
    """Multi-turn FashionIQ: of each round the picture, then what shall change."""
    parts = []
    for _, texts, image in value["reference"]:
        told = " and ".join(text for text in texts if text.strip())
        parts += [("image", image)] + ([("text", told)] if told else [])
    return {"parts": parts, "right": [value["target"][1]]}


def _negations(path: Path) -> Iterator[Record]:
    """CC-Neg's last entries. Its paths of pictures are those of its authors' disk: they count from ``ccneg/``."""
    schema = {"json": {"caption": str}, "sop_data": {"negative-prompt": str}}
    content = checked(Record(str(path), tensor_file(path)), {"image_paths": list, "annotations": list})
    paths, annotations = content["image_paths"], content["annotations"]
    if len(paths) != len(annotations):
        raise ValueError(f"{path}: {len(paths):,} image_paths for {len(annotations):,} annotations.")
    cut = None
    for number in range(max(len(paths) - CCNEG_LAST, 0), len(paths)):
        place = f"{path}, entry {number}"
        image, value = checked(Record(place, [paths[number], annotations[number]]), (str, schema))
        parts = Path(image).parts
        if cut is None:  # how many folders of theirs stand before those that are here, too
            tails = range(len(parts))
            cut = next((at for at in tails if path.parent.joinpath(*parts[at:]).is_file()), len(parts) - 1)
        options = [{"text": value["json"]["caption"]}, {"text": value["sop_data"]["negative-prompt"].replace(",", "")}]
        yield Record(place, {"image": "/".join(("ccneg", *parts[cut:])), "options": options})


def _sugarcrepe(part: str) -> SuiteTask:
    def fields(_: int, value: Any) -> dict[str, Any]:
        options = [{"text": value["caption"]}, {"text": value["negative_caption"]}]
        return {"filename": value["filename"], "options": options}

    schema = {"filename": str, "caption": str, "negative_caption": str}
    source = Source(f"sugar-crepe/data/{part}.json", json_records(), schema, fields)
    asked = CAPTION_OF if part in SUGARCREPE[:4] else ""  # as the reference has it, for whatever reason
    query = Shape(image="sugar-crepe/images/val2017/{filename}", instruction=asked)
    return SuiteTask(part, "image → text", source, query, Shape(text="{text}"), "choice", ACCURACY)


def _clips(path: Path) -> Iterator[Record]:
    """MSVD: every caption of every video of the test list."""
    captions = pickled_data(path.parent / "raw-captions.pkl")
    for record in text_lines(path):
        place = f"{path.parent / 'raw-captions.pkl'}, video {record.value!r}"
        if not isinstance(captions, dict) or record.value not in captions:
            raise ValueError(f"{record.place}: {record.value!r} has no captions in {path.parent / 'raw-captions.pkl'}.")
        for tokens in checked(Record(place, captions[record.value]), [[str]]):
            yield Record(place, {"video": record.value, "text": " ".join(tokens)})


def _mmeb(subset: str) -> SuiteTask:
    """A subset of MMEB: the query with its instruction, candidates without theirs."""
    paths = {"qry_text": str, "qry_img_path": str, "tgt_text": [str], "tgt_img_path": [str]}
    options = {"text": str, "image": str}

    def read(path: Path) -> Iterator[Record]:
        told = {}
        for record in json_records()(path.parents[1] / "data_instruction.json"):
            if record.value.get("key") == subset:
                told = checked(record, {"qry_instruction": str, "tgt_instruction": str})
        if not told:
            raise ValueError(f"{path.parents[1] / 'data_instruction.json'}:1: lacks {subset!r}.")
        for record in json_lines(path):
            value = checked(record, paths)
            texts, pictures = value["tgt_text"], value["tgt_img_path"]
            if not texts or len(texts) != len(pictures):
                raise ValueError(f"{record.place}: {len(texts)} tgt_text and {len(pictures)} tgt_img_path.")
            found = [_mmeb_item(*one, told["tgt_instruction"]) for one in zip(texts, pictures, strict=True)]
            # What is the same as the right answer is right: the reference takes the first of the best.
            others = [one for one in found[1:] if one != found[0]]
            query = _mmeb_item(value["qry_text"], value["qry_img_path"], told["qry_instruction"])
            yield Record(record.place, {**query, "asked": told["qry_instruction"], "options": [found[0], *others]})

    schema = {**options, "options": [options]}
    source = Source(f"MMEB-eval/{subset}/{subset}_test.jsonl", read, schema, _itself)
    query = Shape(text="{text}", image="{image}", instruction="{asked}")
    return SuiteTask(subset, MMEB[subset], source, query, Shape(text="{text}", image="{image}"), "choice", ACCURACY)


def _mmeb_item(text: str, image: str, instruction: str) -> dict[str, str]:
    """Text without marker and instruction, normalised; the picture's file, "" for none."""
    text = text.replace("<|image_1|>", "")
    text = re.sub(r"^[\s,;:.?]+", "", text.replace(instruction, "") if instruction else text)
    return {"text": format_string(text), "image": f"MMEB-eval/eval_images/{image}" if image else ""}


_FLICKR = Source("flickr/flickr_text.json", json_records(), str, _five_a_picture)
_COCO = Source("coco/coco_text.json", json_records(), str, _five_a_picture)
_SHAREGPT4V = Source(
    "sharegpt4v/datas_for_validation.json", json_records(), {"image_name": str, "caption": str}, _itself
)
_URBAN1K = Source("Urban1k/caption", numbered_files, {"number": int, "text": str}, _itself)
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
            Shape(image=_FLICKR_PICTURE, instruction=I2T), Shape(text="{text}"),
        ),
    ),
    "coco5k": Suite("COCO 5k", _both_ways(_COCO, *_COCO_SIDES, *_COCO_SIDES)),
    "sharegpt4v": Suite("ShareGPT4V", _both_ways(_SHAREGPT4V, *_SHAREGPT4V_SIDES, *_SHAREGPT4V_SIDES), ("val",)),
    "urban1k": Suite("Urban1K", _both_ways(_URBAN1K, *_URBAN1K_SIDES, *_URBAN1K_SIDES)),
    "circo": Suite(
        "CIRCO",
        (
            SuiteTask(
                "", "image+text → image",
                Source("circo/annotations/{split}.json", _compositions, dict, _itself),
                Shape(
                    image="circo/images/unlabeled2017/{reference_img_id:012d}.jpg", text="{relative_caption}",
                    instruction=CIR,
                ),
                Shape(image="circo/images/unlabeled2017/{file_name}"),
                "pool", CIRCO_METRICS,
                Source(
                    "circo/annotations/image_info_unlabeled2017.json", json_records("images"),
                    {"id": int, "file_name": str}, lambda _, value: {**value, "did": value["id"]},
                ),
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
                Source("visdial/visdial_1.0_val.json", _dialogs, {"image_id": int, "text": str}, _itself),
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
                "", "story → image", Source("vist/sis/val.story-in-sequence.json", _stories, dict, _itself),
                Shape(chat="parts", image="{}"), Shape(image="{image}"), "pool", R_1_5_10,
                Source("vist/sis/val.story-in-sequence.json", _photos, {"did": str, "image": str}, _itself),
            ),
        ),
        ("val",),
    ),
    "mt-fashioniq": Suite(
        "Multi-turn FashionIQ",
        (
            SuiteTask(
                "", "rounds → image",
                Source(
                    "multiturnfashion/data/all.val.json", json_records(),
                    {"target": (object, str), "reference": [(object, [str], str)]}, _rounds,
                ),
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
                "", "image → text", Source("ccneg/ccneg_preprocessed.pt", _negations, dict, _itself),
                Shape(image="{image}"), Shape(text="{text}"), "choice", ACCURACY,
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
                    "msrvtt/annotations/MSRVTT_JSFUSION_test.csv", csv_records, {"video_id": str, "sentence": str},
                    _itself,
                ),
                Shape(text="{sentence}", instruction=VIDEO),
                Shape(video="msrvtt/videos/{video_id}.mp4", frames={"fps": 2.0}),
                "pairs", R_1_5_10,
            ),
        ),
    ),
    "msvd": Suite(
        "MSVD",
        (
            SuiteTask(
                "", "text → video", Source("MSVD/test_list.txt", _clips, {"video": str, "text": str}, _itself),
                Shape(text="{text}", instruction=VIDEO),
                Shape(video="MSVD/YouTubeClips/{video}.avi", frames={"num_frames": 12}),
                "pairs", R_1_5_10,
            ),
        ),
    ),
    "mmeb": Suite("MMEB", tuple(_mmeb(subset) for subset in MMEB), means=MMEB_MEANS),
}  # fmt: skip
