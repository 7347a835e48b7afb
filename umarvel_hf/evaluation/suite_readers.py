"""Readers of zero-shot sets whose files need more than a table says: records that name others, stories, rounds."""

import re
from collections.abc import Iterator
from pathlib import Path

from umarvel_hf.evaluation.suite_files import (
    Reader,
    Record,
    Schema,
    checked,
    json_lines,
    json_records,
    pickled_data,
    tensor_file,
    text_lines,
)
from umarvel_hf.records import format_string

STORY = (
    "I will provide you with a series of images and captions from a story, and I need you to retrieve the image "
    "corresponding to the last caption."
)
CCNEG_LAST = 40_000  # entries of the file that are the test set
VIST_KINDS = ("jpg", "png", "gif")


def circo_queries(path: Path) -> Iterator[Record]:
    """CIRCO's queries; those of the test split name no answer."""
    schema: dict[str, Schema] = {"id": int, "reference_img_id": int, "relative_caption": str}
    answers: dict[str, Schema] = {} if path.stem == "test" else {"gt_img_ids": [int], "target_img_id": int}
    for record in json_records()(path):
        value = checked(record, schema | answers)
        fields = {"qid": value["id"], **{name: value[name] for name in schema}}
        if answers:
            fields |= {"right": value["gt_img_ids"], "target": value["target_img_id"]}
        yield Record(record.place, fields)


def visdial_dialogs(path: Path) -> Iterator[Record]:
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


def vist_stories(path: Path) -> Iterator[Record]:
    """VIST's stories: the intro, then of each step its caption and picture, of the last one the caption."""
    stories: dict[str, list[Record]] = {}
    for record in json_records("annotations")(path):
        (step, *_) = checked(record, ({"story_id": str, "photo_flickr_id": str, "text": str},))
        stories.setdefault(step["story_id"], []).append(Record(record.place, step))
    for story, steps in stories.items():
        pictures = {one.value["photo_flickr_id"]: _photo(path, one.value["photo_flickr_id"]) for one in steps}
        parts: list[tuple[str, str | None]] = [("text", f"{STORY} ")]
        for one in steps[:-1]:
            parts += [("text", one.value["text"]), ("image", pictures[one.value["photo_flickr_id"]])]
        last = steps[-1].value
        fields = {
            "parts": [*parts, ("text", last["text"])],
            "right": [last["photo_flickr_id"]],
            "excluded": [one.value["photo_flickr_id"] for one in steps[:-1]],  # they were seen
        }
        missing = sorted(photo for photo, file in pictures.items() if file is None)
        yield Record(steps[0].place, fields, f"story {story} has no picture {missing[0]}" if missing else "")


def vist_photos(path: Path) -> Iterator[Record]:
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


def fashioniq_sessions(path: Path) -> Iterator[Record]:
    """Multi-turn FashionIQ: of each round the picture, then what shall change."""
    for record in json_records()(path):
        value = checked(record, {"target": (object, str), "reference": [(object, [str], str)]})
        parts = []
        for _, texts, image in value["reference"]:
            change = " and ".join(text for text in texts if text.strip())
            parts += [("image", image)] + ([("text", change)] if change else [])
        yield Record(record.place, {"parts": parts, "right": [value["target"][1]]})


def ccneg_entries(path: Path) -> Iterator[Record]:
    """CC-Neg's last entries. Its paths of pictures are those of its authors' disk: they count from ``ccneg/``."""
    schema = {"json": {"caption": str}, "sop_data": {"negative-prompt": str}}
    content = checked(Record(str(path), tensor_file(path)), {"image_paths": list, "annotations": list})
    paths, annotations = content["image_paths"], content["annotations"]
    if len(paths) != len(annotations):
        raise ValueError(f"{path}: {len(paths):,} image_paths for {len(annotations):,} annotations.")
    cut = None  # how many folders of theirs stand before those that are here, too
    for number in range(max(len(paths) - CCNEG_LAST, 0), len(paths)):
        place = f"{path}, entry {number}"
        image, value = checked(Record(place, [paths[number], annotations[number]]), (str, schema))
        parts = [part for part in Path(image).parts if part != Path(image).anchor]
        if cut is None:
            cut = next((at for at in range(len(parts)) if path.parent.joinpath(*parts[at:]).is_file()), None)
        if cut is None:
            raise FileNotFoundError(f"{place} names {image!r}, and no end of it lies below {path.parent}. Complete it.")
        options = [{"text": value["json"]["caption"]}, {"text": value["sop_data"]["negative-prompt"].replace(",", "")}]
        yield Record(place, {"image": "/".join(("ccneg", *parts[cut:])), "options": options})


def msvd_captions(path: Path) -> Iterator[Record]:
    """MSVD: every caption of every video of the test list."""
    file = path.parent / "raw-captions.pkl"
    captions = checked(Record(str(file), pickled_data(file)), dict)
    for record in text_lines(path):
        if not captions.get(record.value):
            raise ValueError(f"{record.place}: {record.value!r} has no captions in {file}.")
        place = f"{file}, video {record.value!r}"
        for tokens in checked(Record(place, captions[record.value]), [[str]]):
            yield Record(place, {"video": record.value, "text": " ".join(tokens)})


def mmeb_rows(subset: str) -> Reader:
    """A reader of a set of MMEB: the query with its instruction, candidates without theirs, the right one first."""
    schema = {"qry_text": str, "qry_img_path": str, "tgt_text": [str], "tgt_img_path": [str]}

    def read(path: Path) -> Iterator[Record]:
        file = path.parents[1] / "data_instruction.json"
        own = [record for record in json_records()(file) if record.key == subset]
        if not own:
            raise ValueError(f"{file}:1: lacks {subset!r}.")
        instructions = checked(own[0], {"qry_instruction": str, "tgt_instruction": str})
        asked, wanted = instructions["qry_instruction"], instructions["tgt_instruction"]
        for record in json_lines(path):
            value = checked(record, schema)
            texts, pictures = value["tgt_text"], value["tgt_img_path"]
            if not texts or len(texts) != len(pictures):
                raise ValueError(f"{record.place}: {len(texts)} tgt_text and {len(pictures)} tgt_img_path.")
            right, *others = (_mmeb_item(*one, wanted) for one in zip(texts, pictures, strict=True))
            # What is the same as the right answer is right, as the reference takes the first of the best.
            options = [right, *(one for one in others if one != right)]
            query = _mmeb_item(value["qry_text"], value["qry_img_path"], asked)
            yield Record(record.place, {**query, "instruction": asked, "options": options})

    return read


def _mmeb_item(text: str, image: str, instruction: str) -> dict[str, str]:
    """Text without marker and instruction, normalised; the picture's file, "" for none."""
    text = text.replace("<|image_1|>", "")
    bare = re.sub(r"^[\s,;:.?]+", "", text.replace(instruction, "") if instruction else text)
    if not bare and not image:
        bare = text  # so that there is something to encode
    return {"text": format_string(bare), "image": f"MMEB-eval/eval_images/{image}" if image else ""}
