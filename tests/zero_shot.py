"""Every zero-shot set, tiny, in the format of its files, and an encoder by which its scores can be worked out by hand.

A vector is an angle in a plane, so the nearest candidate is the one whose angle is. A text has the last angle that it
names ("a dog at 40°"), a file the one it was given here.
"""

import json
import pickle
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

ANGLE = re.compile(r"(\d+)°")
Angles = dict[str, int]


class Angled:
    """Gives every item the vector of its angle; of several parts the last that has one counts."""

    def __init__(self, root: Path, angles: Angles) -> None:
        self.root, self.angles = root, angles
        self.encoded: list[tuple[str | None, Any]] = []

    def encode(
        self, inputs: Sequence[Any], *, prompt: str | None = None, show_progress_bar: bool | None = None
    ) -> np.ndarray:
        self.encoded += [(prompt, self._told(one)) for one in inputs]
        degrees = np.radians([self._angle(one) for one in inputs])
        return np.stack([np.cos(degrees), np.sin(degrees)], axis=1).astype(np.float32)

    def _parts(self, item: Any) -> list[Any]:
        if isinstance(item, list):
            return [next(part[kind] for kind in ("text", "image") if kind in part) for part in item[0]["content"]]
        return [item] if isinstance(item, str | Path) else list(item.values())

    def _angle(self, item: Any) -> int:
        return [found for part in self._parts(item) if (found := self._of(part)) is not None][-1]

    def _of(self, part: Any) -> int | None:
        if isinstance(part, str):
            return int(ANGLE.findall(part)[-1]) if ANGLE.search(part) else None
        path = part["path"] if isinstance(part, dict) else part
        return self.angles.get(path.relative_to(self.root).as_posix())

    def _told(self, item: Any) -> Any:
        """The item with its files as they lie below the root."""
        if isinstance(item, Path):
            return item.relative_to(self.root).as_posix()
        if isinstance(item, dict):
            return {key: self._told(value) for key, value in item.items()}
        return [self._told(one) for one in item] if isinstance(item, list) else item


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return path


def show(root: Path, angles: Angles) -> Angles:
    """Make the files that have angles: pictures of one pixel, or, for videos, empty ones."""
    for name in angles:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in (".mp4", ".avi"):
            path.write_bytes(b"")
        else:
            Image.new("RGB", (1, 1)).save(path, format="PNG")
    return angles


def flickr30k(root: Path, name: str = "flickr", pictures: str = "images") -> Angles:
    texts = ["a dog at 5°", "10°", "20°", "30°", "50°", "a cat at 90°", "80°", "100°", "40°", "2°"]
    write(root / name / f"{name}_text.json", texts)
    return show(root, {f"{name}/{pictures}/0.png": 0, f"{name}/{pictures}/1.png": 90})


def coco5k(root: Path) -> Angles:
    return flickr30k(root, "coco", "coco_images")


def sharegpt4v(root: Path) -> Angles:
    rows = [{"image_name": "sam/a.jpg", "caption": "long, 10°"}, {"image_name": "sam/b.jpg", "caption": "longer, 20°"}]
    write(root / "sharegpt4v/datas_for_validation.json", rows)
    return show(root, {"sharegpt4v/val_data/sam/a.jpg": 0, "sharegpt4v/val_data/sam/b.jpg": 90})


def urban1k(root: Path) -> Angles:
    for number, text in {1: "5°\nnot read 60°", 2: "100°\n", 3: "130°"}.items():
        write(root / f"Urban1k/caption/{number}.txt", text)
    return show(root, {"Urban1k/image/1.jpg": 0, "Urban1k/image/2.jpg": 60, "Urban1k/image/3.jpg": 120})


def circo(root: Path) -> Angles:
    names = {number: f"{number:012d}.jpg" for number in range(1, 7)}
    images = [{"id": number, "file_name": name, "license": 1} for number, name in names.items()]
    write(root / "circo/annotations/image_info_unlabeled2017.json", {"info": {}, "images": images})
    asked = [
        {"id": 0, "reference_img_id": 1, "relative_caption": "has more, 21°", "shared_concept": "a dog"},
        {"id": 1, "reference_img_id": 2, "relative_caption": "1°"},
        {"id": 2, "reference_img_id": 2, "relative_caption": "26°"},
    ]
    write(root / "circo/annotations/test.json", asked)
    right = [(3, [3, 5]), (6, [6]), (1, [1, 2, 3, 4, 5, 6])]
    answered = [
        {**one, "target_img_id": target, "gt_img_ids": several}
        for one, (target, several) in zip(asked, right, strict=True)
    ]
    write(root / "circo/annotations/val.json", answered)
    return show(root, {f"circo/images/unlabeled2017/{name}": 10 * at for at, name in enumerate(names.values())})


def genecis(root: Path) -> Angles:
    objects = {number: {"val_image_id": number, "instance": "x"} for number in range(1, 5)}
    for name, text in (("change_object", "30°"), ("focus_object", "has “two” 41°")):
        sample = {"reference": objects[1], "target": objects[2], "gallery": [objects[3], objects[4]], "condition": text}
        write(root / f"genecis/annotations/{name}.json", [sample])
    angles = {f"genecis/val2017/{number:012d}.jpg": angle for number, angle in {1: 0, 2: 40, 3: 25, 4: 80}.items()}
    for name, tied in (("change_attribute", 80), ("focus_attribute", 12)):
        crops = [{"image_id": number, "instance_bbox": [0, 0, 9, 9]} for number in (7, "8", 7, 6)]
        sample = {"reference": crops[0], "target": crops[1], "gallery": crops[2:], "condition": "red 10°"}
        write(root / f"genecis/annotations/{name}.json", [sample])
        for crop, angle in enumerate((0, 12, 60, tied)):
            angles[f"genecis/vg/{name}/{(7, 8, 7, 6)[crop]}_0_{crop}.jpg"] = angle
    return show(root, angles)


def visdial(root: Path) -> Angles:
    data = {
        "questions": ["is it big", "where is it"],
        "answers": ["10°", "here", "80°", "20°"],
        "dialogs": [
            {
                "image_id": image,
                "caption": "no 60°",
                "dialog": [{"question": 0, "answer": 1}, {"question": 1, "answer": said}],
            }
            for image, said in ((5, 0), (6, 2), (7, 3))
        ],
    }
    write(root / "visdial/visdial_1.0_val.json", {"version": "1.0", "data": data})
    folder = "visdial/VisualDialog_val2018/VisualDialog_val2018_"
    return show(root, {f"{folder}{image:012d}.jpg": angle for image, angle in {5: 0, 6: 90, 7: 45}.items()})


def vist(root: Path) -> Angles:
    stories = {"1": [11, 12, 13, 14, 15], "2": [21, 22, 23, 24, 25], "3": [31, 11, 12, 13, 14]}
    last = {"1": "10°", "2": "100°", "3": "10°"}
    steps = [
        [
            {
                "story_id": story,
                "photo_flickr_id": str(photo),
                "text": last[story] if photo == photos[-1] else f"step {at}",
            }
        ]
        for story, photos in stories.items()
        for at, photo in enumerate(photos)
    ]
    write(root / "vist/sis/val.story-in-sequence.json", {"annotations": steps, "images": []})
    angles = {11: 10, 12: 60, 13: 110, 14: 65, 15: 30, 21: 70, 22: 75, 23: 95, 24: 80, 25: 130}
    kinds = {21: "png", 25: "gif"}
    return show(root, {f"vist/images/val/{one}.{kinds.get(one, 'jpg')}": angle for one, angle in angles.items()})


def mt_fashioniq(root: Path) -> Angles:
    names = [f"B{number}" for number in range(9)]
    write(root / "multiturnfashion/image_splits/split.all.val.json", names)
    asked = [("B6", "33°"), ("B8", "4°"), ("B1", "11°")]
    rows = [
        {"target": [0, name], "reference": [[1, ["is red", " "], "B0"], [2, ["is longer", f"and at {text}"], "B1"]]}
        for name, text in asked
    ]
    write(root / "multiturnfashion/data/all.val.json", rows)
    return show(root, {f"M-BEIR/mbeir_images/fashioniq_images/{name}.jpg": 10 * at for at, name in enumerate(names)})


def cc_neg(root: Path) -> Angles:
    captions = [("a dog, 10°", "not a dog, 50°"), ("a cat at 20°", "no cat at 20°"), ("40°", "not 20°")]
    annotations = [
        {"json": {"caption": right}, "sop_data": {"negative-prompt": wrong, "subject": ""}} for right, wrong in captions
    ]
    paths = [f"/their/disk/cc3m/0000{number}/{number}.jpg" for number in range(3)]
    (root / "ccneg").mkdir(parents=True, exist_ok=True)
    torch.save({"image_paths": paths, "annotations": annotations}, root / "ccneg/ccneg_preprocessed.pt")
    return show(root, {f"ccneg/cc3m/0000{number}/{number}.jpg": 10 * number for number in range(3)})


def sugarcrepe(root: Path) -> Angles:
    row = {"filename": "000000000001.jpg", "caption": "a red dog 3°", "negative_caption": "a blue dog 30°"}
    same = {**row, "negative_caption": "a dog that is red 3°"}
    worse = {**row, "caption": "a dog 50°"}
    parts = ("add_att", "add_obj", "replace_att", "replace_obj", "replace_rel", "swap_att", "swap_obj")
    for part in parts:
        rows = {"add_att": [row, same], "swap_att": [worse], "swap_obj": [row, row, worse, same]}.get(part, [row])
        write(root / f"sugar-crepe/data/{part}.json", {str(at): one for at, one in enumerate(rows)})
    return show(root, {"sugar-crepe/images/val2017/000000000001.jpg": 0})


def msr_vtt(root: Path) -> Angles:
    rows = ["key,vid_key,video_id,sentence", "ret0,msr7,video7,a man at 10°", 'ret1,msr8,video8,"a dog, at 20°"']
    write(root / "msrvtt/annotations/MSRVTT_JSFUSION_test.csv", "\n".join(rows) + "\n")
    return show(root, {"msrvtt/videos/video7.mp4": 0, "msrvtt/videos/video8.mp4": 90})


def msvd(root: Path) -> Angles:
    write(root / "MSVD/test_list.txt", "clip_1_5\nclip_2_8\n")
    said = {"clip_1_5": [["a", "man", "10°"], ["60°"]], "clip_2_8": [["80°"]], "of_another_split": [["5°"]]}
    (root / "MSVD/raw-captions.pkl").write_bytes(pickle.dumps(said))
    return show(root, {"MSVD/YouTubeClips/clip_1_5.avi": 0, "MSVD/YouTubeClips/clip_2_8.avi": 90})


def mmeb(root: Path) -> Angles:
    told = {"ImageNet-1K": ("Represent the given image for classification", "")}
    told["OK-VQA"] = ("Represent the given image with the following question:", "Represent the answer:")
    told["NIGHTS"] = ("Find a day-to-day image that looks similar.", "Represent the given image.")
    instructions = {name: {"qry_instruction": asked, "tgt_instruction": own} for name, (asked, own) in told.items()}
    write(root / "MMEB-eval/data_instruction.json", instructions)
    rows = {
        "ImageNet-1K": [
            ("<|image_1|>\nRepresent the given image for classification", "a.jpg", ["2°", "90°"], ["", ""])
        ],
        "OK-VQA": [
            (
                f"<|image_1|>\nRepresent the given image with the following question: what at {said}?",
                "a.jpg",
                texts,
                [""] * 3,
            )
            for said, texts in (("30°", ["31°", "50°", "31°"]), ("30°", ["45°", "29°", "80°"]))
        ],
        "NIGHTS": [
            (
                "<|image_1|>\nFind a day-to-day image that looks similar.",
                "a.jpg",
                ["<|image_1|>\nRepresent the given image."] * 2,
                ["b.jpg", "c.jpg"],
            )
        ],
    }
    for name, own in rows.items():
        keys = ("qry_text", "qry_img_path", "tgt_text", "tgt_img_path")
        lines = "".join(json.dumps(dict(zip(keys, row, strict=True)), ensure_ascii=False) + "\n" for row in own)
        write(root / f"MMEB-eval/{name}/{name}_test.jsonl", lines)
    return show(
        root, {f"MMEB-eval/eval_images/{name}.jpg": angle for name, angle in {"a": 0, "b": 20, "c": 10}.items()}
    )


WRITERS = {
    "flickr30k": flickr30k,
    "coco5k": coco5k,
    "sharegpt4v": sharegpt4v,
    "urban1k": urban1k,
    "circo": circo,
    "genecis": genecis,
    "visdial": visdial,
    "vist": vist,
    "mt-fashioniq": mt_fashioniq,
    "cc-neg": cc_neg,
    "sugarcrepe": sugarcrepe,
    "msr-vtt": msr_vtt,
    "msvd": msvd,
    "mmeb": mmeb,
}
MMEB_TASKS = ["mmeb_ImageNet-1K", "mmeb_OK-VQA", "mmeb_NIGHTS"]
