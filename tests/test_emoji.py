"""The embedded benchmark as written: layout, splits, near-misses, truth of captions and edits."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from umarvel_hf.emoji import benchmark_dir, scenes, write_benchmark, writer
from umarvel_hf.emoji.dataset import TASKS
from umarvel_hf.emoji.pack import HELD_OUT_STYLE, HERE, STYLES, TRAINED_STYLES, Pack, concepts
from umarvel_hf.emoji.scenes import Scene

Row = dict[str, Any]
DATASETS = {"emojiseen": 100, "emojiunseen": 101, "scenes": 102}
QUERY_FIELDS = [
    "qid",
    "query_txt",
    "query_img_path",
    "query_modality",
    "query_src_content",
    "pos_cand_list",
    "neg_cand_list",
    "task_id",
]
EVERYWHERE = pytest.mark.parametrize(("dataset", "task"), [(name, task) for name in DATASETS for task in TASKS])
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
BY_HEX = {concept.hex: concept for concept in concepts()}


class Benchmark:
    """The written files, each read once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._rows: dict[str, list[Row]] = {}

    def rows(self, path: str) -> list[Row]:
        if path not in self._rows:
            self._rows[path] = [
                json.loads(line) for line in (self.root / path).read_text(encoding="utf-8").splitlines()
            ]
        return self._rows[path]

    def queries(self, dataset: str, task: int, split: str) -> list[Row]:
        return self.rows(f"query/{split}/mbeir_{dataset}_task{task}_{split}.jsonl")

    def asked(self, dataset: str, task: int) -> list[Row]:
        return self.queries(dataset, task, "val") + self.queries(dataset, task, "test")

    def train(self, dataset: str) -> list[Row]:
        return self.rows(f"query/train/mbeir_{dataset}_train.jsonl")

    def pool(self, dataset: str, task: int) -> dict[str, Row]:
        return {row["did"]: row for row in self.rows(f"cand_pool/local/mbeir_{dataset}_task{task}_cand_pool.jsonl")}

    def union(self, split: str) -> dict[str, Row]:
        return {row["did"]: row for row in self.rows(f"cand_pool/global/mbeir_union_{split}_cand_pool.jsonl")}


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> Benchmark:
    """Written to an empty cache by a process that hashes strings in its own way."""
    cache = tmp_path_factory.mktemp("cache")
    environment = {**os.environ, "PYTHONHASHSEED": "12345", "UMARVEL_CACHE": str(cache)}
    code = "from umarvel_hf.emoji import benchmark_dir; print(benchmark_dir())"
    out = subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True
    ).stdout
    assert [str(path) for path in cache.iterdir()] == [out.strip()]
    return Benchmark(Path(out.strip()))


def tree_sha256(root: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted((path for path in root.rglob("*") if path.is_file()), key=lambda path: path.as_posix()):
        digest.update(
            f"{path.relative_to(root).as_posix()}\n{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode()
        )
    return digest.hexdigest()


def things(row: Row) -> frozenset[str]:
    """What a scene candidate shows, from "cat above key; pen left key"."""
    return frozenset(thing for part in facts(row["src_content"]) for thing in (part[0], part[2]))


def facts(about: str) -> frozenset[tuple[str, str, str]]:
    """Everything true of a scene, said from both sides."""
    found = set()
    for part in about.split("; "):
        x, relation, y = re.fullmatch(r"(.+) (left|right|above|below) (.+)", part).groups()  # type: ignore[union-attr]
        found |= {(x, relation, y), (y, OPPOSITE[relation], x)}
    return frozenset(found)


# Files


def test_the_files_are_those_of_m_beir(benchmark: Benchmark) -> None:
    expected = {"instructions/query_instructions.tsv", "query/union_train/mbeir_union_up_train.jsonl"}
    expected |= {f"cand_pool/global/mbeir_union_{split}_cand_pool.jsonl" for split in ("train", "test")}
    for dataset in ("emojiseen", "scenes"):
        expected |= {f"query/train/mbeir_{dataset}_train.jsonl", f"qrels/train/mbeir_{dataset}_train_qrels.txt"}
    for dataset in DATASETS:
        for task in TASKS:
            expected.add(f"cand_pool/local/mbeir_{dataset}_task{task}_cand_pool.jsonl")
            for split in ("val", "test"):
                expected.add(f"query/{split}/mbeir_{dataset}_task{task}_{split}.jsonl")
                expected.add(f"qrels/{split}/mbeir_{dataset}_task{task}_{split}_qrels.txt")
    written = {path.relative_to(benchmark.root).as_posix() for path in benchmark.root.rglob("*") if path.is_file()}
    images = {path for path in written if path.startswith("mbeir_images/")}
    assert written - images == expected
    named = {row["img_path"] for split in ("train", "test") for row in benchmark.union(split).values()}
    for dataset in DATASETS:
        named |= {row["query_img_path"] for task in TASKS for row in benchmark.asked(dataset, task)}
    named |= {row["query_img_path"] for dataset in ("emojiseen", "scenes") for row in benchmark.train(dataset)}
    assert named - {None} <= images


@EVERYWHERE
def test_rows_have_the_fields_and_modalities_of_their_task(benchmark: Benchmark, dataset: str, task: int) -> None:
    asks, finds = TASKS[task]
    for row in benchmark.asked(dataset, task):
        assert list(row) == QUERY_FIELDS
        assert (row["query_modality"], row["task_id"]) == (asks, task)
        assert (row["query_txt"] is not None, row["query_img_path"] is not None) == ("text" in asks, "image" in asks)
    for row in benchmark.pool(dataset, task).values():
        assert list(row) == ["did", "txt", "img_path", "modality", "src_content"]
        assert row["modality"] == finds
        assert (row["txt"] is not None, row["img_path"] is not None) == ("text" in finds, "image" in finds)
        assert row["did"].startswith(f"{DATASETS[dataset]}:")


def test_query_ids_are_unique_and_carry_their_dataset(benchmark: Benchmark) -> None:
    for dataset, number in DATASETS.items():
        qids = [row["qid"] for task in TASKS for row in benchmark.asked(dataset, task)]
        qids += [row["qid"] for row in benchmark.train(dataset)] if dataset != "emojiunseen" else []
        assert len(set(qids)) == len(qids)
        assert all(qid.startswith(f"{number}:") for qid in qids)


@EVERYWHERE
def test_relevance_files_say_what_the_queries_say(benchmark: Benchmark, dataset: str, task: int) -> None:
    for split in ("val", "test"):
        qrels = (
            (benchmark.root / f"qrels/{split}/mbeir_{dataset}_task{task}_{split}_qrels.txt").read_text().splitlines()
        )
        queries = benchmark.queries(dataset, task, split)
        assert qrels == [f"{row['qid']} 0 {did} 1 {task}" for row in queries for did in row["pos_cand_list"]]
        assert all(did in benchmark.pool(dataset, task) for row in queries for did in row["pos_cand_list"])


def test_training_answers_stand_in_the_training_pool(benchmark: Benchmark) -> None:
    pool = benchmark.union("train")
    union = benchmark.rows("query/union_train/mbeir_union_up_train.jsonl")
    assert union == benchmark.train("emojiseen") + benchmark.train("scenes")
    for row in union:
        assert row["query_modality"] == TASKS[row["task_id"]][0]
        assert {pool[did]["modality"] for did in row["pos_cand_list"]} == {TASKS[row["task_id"]][1]}
        if row["query_modality"] == "image":
            assert row["query_img_path"] not in {pool[did]["img_path"] for did in row["pos_cand_list"]}
    for dataset in ("emojiseen", "scenes"):
        qrels = (benchmark.root / f"qrels/train/mbeir_{dataset}_train_qrels.txt").read_text().splitlines()
        assert len(qrels) == sum(len(row["pos_cand_list"]) for row in benchmark.train(dataset))


def test_every_kind_of_query_has_four_instructions(benchmark: Benchmark) -> None:
    header, *lines = (benchmark.root / "instructions/query_instructions.tsv").read_text().splitlines()
    assert header.startswith("query_modality\tcand_modality\tdataset_name\tdataset_id\tprompt_1")
    prompts = {(cells[3], cells[0], cells[1]): cells[4:] for cells in (line.split("\t") for line in lines)}
    assert set(prompts) == {(str(number), *pair) for number in DATASETS.values() for pair in TASKS.values()}
    assert all(len(set(filter(None, texts))) >= 4 for texts in prompts.values())


def test_images_are_palette_pngs_of_64_pixels(benchmark: Benchmark) -> None:
    paths = sorted((benchmark.root / "mbeir_images").rglob("*.png"))
    for path in random.Random(0).sample(paths, 200):
        with Image.open(path) as image:
            image.load()
            assert (image.mode, image.size) == ("P", (64, 64))


# The same bytes everywhere


def test_every_process_writes_the_tree_that_the_cache_is_named_by(benchmark: Benchmark) -> None:
    """The constant was made by a process with other hashes of strings."""
    assert tree_sha256(benchmark.root) == writer.TREE_SHA256
    assert benchmark.root.name == f"emoji-{writer.TREE_SHA256[:12]}"


def test_importing_the_package_loads_no_imaging_library() -> None:
    code = "import sys, umarvel_hf.emoji; print(sorted({'PIL', 'numpy', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"


def test_a_write_that_is_cut_short_leaves_nothing_that_looks_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UMARVEL_CACHE", str(tmp_path))

    def cut_short(root: Path) -> None:
        (root / "query").mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(writer, "write_files", cut_short)
    with pytest.raises(KeyboardInterrupt):
        benchmark_dir()
    (tmp_path / f".{writer.TREE_SHA256[:12]}-killed").mkdir()  # what a killed process leaves behind
    monkeypatch.setattr(writer, "write_files", lambda root: (root / "whole").touch())
    assert (benchmark_dir() / "whole").exists()


def test_of_two_writers_the_first_to_finish_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "benchmark"

    def overtaken(root: Path) -> None:
        (root / "mine").touch()
        out.mkdir()
        (out / "theirs").touch()

    monkeypatch.setattr(writer, "write_files", overtaken)
    assert write_benchmark(out) == out
    assert [path.name for path in out.iterdir()] == ["theirs"]
    assert [path.name for path in tmp_path.iterdir()] == ["benchmark"]


def test_a_folder_with_other_things_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").touch()
    with pytest.raises(FileExistsError, match="is not empty"):
        write_benchmark(tmp_path)


# Sizes


@EVERYWHERE
def test_pools_and_query_sets_are_large_enough(benchmark: Benchmark, dataset: str, task: int) -> None:
    assert len(benchmark.pool(dataset, task)) >= (1000 if dataset == "scenes" else 400)
    assert len(benchmark.queries(dataset, task, "test")) >= 200
    assert len(benchmark.queries(dataset, task, "val")) >= 50


def test_the_union_holds_every_local_candidate_once(benchmark: Benchmark) -> None:
    lines = benchmark.rows("cand_pool/global/mbeir_union_test_cand_pool.jsonl")
    local = {did: row for name in DATASETS for task in TASKS for did, row in benchmark.pool(name, task).items()}
    assert benchmark.union("test") == local
    assert len(lines) == len(local) >= 5000
    contents = {(row["txt"], row["img_path"]) for row in lines}
    assert len(contents) == len(lines)


def test_the_card_prints_the_sizes_that_were_written(benchmark: Benchmark) -> None:
    lines = [
        "| dataset | task | asks → finds | training queries | val | test | pool |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for dataset in DATASETS:
        train = benchmark.train(dataset) if dataset != "emojiunseen" else []
        for task, (asks, finds) in TASKS.items():
            counts = [sum(row["task_id"] == task for row in train)]
            counts += [len(benchmark.queries(dataset, task, split)) for split in ("val", "test")]
            cells = [
                dataset,
                str(task),
                f"{asks} → {finds}",
                *(f"{n:,}" for n in [*counts, len(benchmark.pool(dataset, task))]),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    size = sum(path.stat().st_size for path in benchmark.root.rglob("*") if path.is_file())
    images = sum(1 for _ in (benchmark.root / "mbeir_images").rglob("*.png"))
    drawn = [concept for concept in concepts() if concept.styles]
    card = (HERE / "README.md").read_text(encoding="utf-8")
    assert "\n".join(lines) in card
    for number in (
        f"{len(benchmark.union('train')):,} training candidates",
        f"{len(benchmark.union('test')):,} candidates in the union",
        f"{len(benchmark.rows('query/union_train/mbeir_union_up_train.jsonl')):,} training queries",
        f"{images:,} pictures",
        f"{size / 1e6:.0f} MB",
        f"{len(drawn):,} emoji of {len({concept.family for concept in drawn})} families",
        f"{sum(concept.scene for concept in drawn)} things",
    ):
        assert number in card, number


# The pack


def test_the_pack_is_small_and_has_enough_families_and_no_flags() -> None:
    assert sum(path.stat().st_size for path in HERE.iterdir() if path.is_file()) <= 5_000_000
    drawn = [concept for concept in concepts() if concept.styles]
    assert len({concept.family for concept in drawn}) >= 450
    assert len(TRAINED_STYLES) >= 3
    assert not [concept for concept in concepts() if concept.group == "flags"]
    assert all(set(concept.styles) <= set(STYLES) for concept in concepts())


def test_no_two_emoji_share_a_name_a_gloss_or_a_drawing() -> None:
    for values in (
        [concept.label.casefold() for concept in concepts()],
        [concept.gloss for concept in concepts() if concept.gloss],
        [concept.hex for concept in concepts()],
    ):
        assert len(set(values)) == len(values)
    with Pack() as pack:
        for style in STYLES:
            sprites = [pack.sprite(style, concept.hex) for concept in concepts() if style in concept.styles]
            assert len(set(sprites)) == len(sprites) > 600
            assert max(len(sprite.palette) for sprite in sprites) <= 3 * 64


# Splits


def families(rows: list[Row]) -> set[str]:
    return {BY_HEX[row["src_content"]].family for row in rows}


def test_unseen_families_never_appear_in_training(benchmark: Benchmark) -> None:
    train = [row for row in benchmark.union("train").values() if row["did"].startswith("100:")]
    for task in TASKS:
        assert not families(list(benchmark.pool("emojiunseen", task).values())) & families(train)
    shown = {Path(row["query_img_path"]).stem for row in benchmark.train("emojiseen") if row["query_img_path"]}
    assert {BY_HEX[stem].family for stem in shown} <= families(train)
    in_scenes = {concept.family for concept in concepts() if concept.scene}
    assert in_scenes <= families(train)


def test_the_held_out_style_never_appears_in_training_and_is_what_s_asks_for(benchmark: Benchmark) -> None:
    rows = [*benchmark.union("train").values()]
    paths = [row["img_path"] for row in rows] + [row["query_img_path"] for row in benchmark.train("emojiseen")]
    assert not [path for path in paths if path and HELD_OUT_STYLE in path]
    for task in (0, 2, 4, 7, 8):
        pool = benchmark.pool("emojiseen", task).values()
        assert all(row["img_path"].startswith(f"mbeir_images/emoji/{HELD_OUT_STYLE}/") for row in pool)
    for task in (3, 6, 7, 8):
        assert all(f"/{HELD_OUT_STYLE}/" in row["query_img_path"] for row in benchmark.asked("emojiseen", task))
    assert not [row for row in benchmark.asked("emojiseen", 4) if HELD_OUT_STYLE in row["query_img_path"]]


def pairs_of(rows: list[Row]) -> set[frozenset[str]]:
    return {frozenset((x, y)) for row in rows for x in things(row) for y in things(row) if x != y}


def test_no_two_things_of_a_test_scene_meet_in_training(benchmark: Benchmark) -> None:
    train = pairs_of([row for row in benchmark.union("train").values() if row["did"].startswith("102:")])
    asked = pairs_of([row for task in TASKS for row in benchmark.pool("scenes", task).values()])
    assert len(asked) >= 300
    assert len(train) >= 2000
    assert not train & asked
    assert all("/scenes/train/" in row["query_img_path"] for row in benchmark.train("scenes") if row["query_img_path"])


def test_val_and_test_ask_for_different_scenes_and_unseen_families(benchmark: Benchmark) -> None:
    for task in TASKS:
        answers = {}
        for dataset in ("scenes", "emojiunseen"):
            pool = benchmark.pool(dataset, task)
            for split in ("val", "test"):
                rows = [pool[row["pos_cand_list"][0]] for row in benchmark.queries(dataset, task, split)]
                answers[dataset, split] = {things(row) for row in rows} if dataset == "scenes" else families(rows)
        assert not answers["scenes", "val"] & answers["scenes", "test"]
        assert not answers["emojiunseen", "val"] & answers["emojiunseen", "test"]


# Pools


@EVERYWHERE
def test_a_query_image_is_never_a_candidate(benchmark: Benchmark, dataset: str, task: int) -> None:
    tasks = [task] if dataset == "emojiseen" and task in (3, 6) else [0, 2, 4, 7, 8]
    candidates = {row["img_path"] for other in tasks for row in benchmark.pool(dataset, other).values()}
    assert not {row["query_img_path"] for row in benchmark.asked(dataset, task)} & (candidates - {None})


@EVERYWHERE
def test_candidates_share_a_text_only_if_the_same_queries_ask_for_them(
    benchmark: Benchmark, dataset: str, task: int
) -> None:
    sharing = defaultdict(list)
    for did, row in benchmark.pool(dataset, task).items():
        if row["txt"] is not None:
            sharing[row["txt"].casefold()].append(did)
    asking: dict[str, list[str]] = defaultdict(list)
    for row in benchmark.asked(dataset, task):
        for did in row["pos_cand_list"]:
            asking[did].append(row["qid"])
    for dids in sharing.values():
        assert len({tuple(asking[did]) for did in dids}) == 1
    if (dataset, task) not in [("emojiunseen", 2), ("emojiunseen", 8)]:  # two drawings of one thing, with its name
        assert all(len(dids) == 1 for dids in sharing.values())


@pytest.mark.parametrize("task", TASKS)
def test_every_scene_stands_in_its_pool_among_its_near_misses(benchmark: Benchmark, task: int) -> None:
    groups = defaultdict(set)
    for row in benchmark.pool("scenes", task).values():
        groups[things(row)].add(facts(row["src_content"]))
    assert len(groups) == 250
    for names, arrangements in groups.items():
        assert len(arrangements) == 4
        if len(names) == 2:
            x, y = sorted(names)
            assert arrangements == {facts(f"{x} {relation} {y}") for relation in OPPOSITE}


@pytest.mark.parametrize("task", [6, 7, 8])
@pytest.mark.parametrize("dataset", ["emojiseen", "emojiunseen"])
def test_edits_of_tone_and_gender_lead_to_what_they_say_among_near_misses(
    benchmark: Benchmark, dataset: str, task: int
) -> None:
    pool = benchmark.pool(dataset, task)
    members = defaultdict(set)
    for row in pool.values():
        members[BY_HEX[row["src_content"]].family].add(row["src_content"])
    for row in benchmark.asked(dataset, task):
        source = BY_HEX[Path(row["query_img_path"]).stem]
        targets = {row["src_content"] for row in map(pool.get, row["pos_cand_list"]) if row}
        assert len(targets) == 1
        target = BY_HEX[targets.pop()]
        assert target.family == source.family
        assert (target.tone, target.gender) == wanted(row["query_txt"], source.tone, source.gender)
        assert len(members[target.family]) >= 4


def wanted(text: str, tone: str | None, gender: str | None) -> tuple[str | None, str | None]:
    """Tone and gender after an edit, read off its words."""
    if found := re.search(r"([a-z-]+) skin", text):
        return (None if found[1] in ("plain", "yellow", "a") else found[1]), gender
    if "skin" in text or "yellow" in text:
        return None, gender
    genders = {"a woman": "woman", "a man": "man", "gender": "person"}
    return tone, next(value for words, value in genders.items() if words in text)


# Scenes

RELATIONS = {
    "to the left of": "left", "left of": "left", "on the left of": "left",
    "to the right of": "right", "right of": "right", "on the right of": "right",
    "above": "above", "over": "above", "below": "below", "under": "below", "beneath": "below",
    "to its left": "left", "on its left": "left", "to its right": "right", "on its right": "right",
    "above it": "above", "over it": "above", "below it": "below", "under it": "below",
    "on the left": "left", "on the right": "right", "at the top": "above", "at the bottom": "below",
}  # fmt: skip
OF_WORDS = [words for words in RELATIONS if not words.endswith(("it", "left", "right", "top", "bottom"))]
OF = "(" + "|".join(sorted(OF_WORDS, key=len, reverse=True)) + ")"
IT = "(" + "|".join(words for words in RELATIONS if re.search(r"it$|its", words)) + ")"
SIDE = "(on the left|on the right|at the top|at the bottom)"


def said(text: str) -> frozenset[tuple[str, str, str]]:
    """The facts that a caption states."""
    text = re.sub(r"\ban? ", "", text.removeprefix("there is "))
    if found := re.fullmatch(rf"(.+?) {OF} (.+), with (.+?) {OF} the (.+)", text):
        x, one, y, z, other, again = found.groups()
        assert y == again
        return facts(f"{x} {RELATIONS[one]} {y}; {z} {RELATIONS[other]} {y}")
    if found := re.fullmatch(rf"(.+) with (.+) {IT} and (.+) {IT}", text) or re.fullmatch(
        rf"(.+); (.+) {IT}, (.+) {IT}", text
    ):
        y, x, one, z, other = found.groups()
        return facts(f"{x} {RELATIONS[one]} {y}; {z} {RELATIONS[other]} {y}")
    if found := re.fullmatch(rf"{SIDE}, (.+); {SIDE}, (.+)", text):
        one, x, other, y = found.groups()
        assert RELATIONS[other] == OPPOSITE[RELATIONS[one]]
        return facts(f"{x} {RELATIONS[one]} {y}")
    if found := re.fullmatch(rf"(.+) with (.+) {IT}", text):
        y, x, one = found.groups()
        return facts(f"{x} {RELATIONS[one]} {y}")
    if found := re.fullmatch(rf"(.+) and, {IT}, (.+)", text):
        y, one, x = found.groups()
        return facts(f"{x} {RELATIONS[one]} {y}")
    found = re.fullmatch(rf"(.+?) {OF} (.+)", text)
    assert found, text
    return facts(f"{found[1]} {RELATIONS[found[2]]} {found[3]}")


def test_captions_say_what_is_in_the_scene_and_only_one_candidate_says_it(benchmark: Benchmark) -> None:
    for task in (1, 3):
        pool = benchmark.pool("scenes", task).values()
        assert all(said(row["txt"]) == facts(row["src_content"]) for row in pool)
        assert len({said(row["txt"]) for row in pool}) == len(pool)
    for task in (0, 1, 2):
        pool = benchmark.pool("scenes", task)
        for row in benchmark.asked("scenes", task):
            assert said(row["query_txt"]) == facts(pool[row["pos_cand_list"][0]]["src_content"])
    train = benchmark.union("train")
    for row in benchmark.train("scenes")[:5000]:
        assert said(row["query_txt"]) == facts(train[row["pos_cand_list"][0]]["src_content"])


def test_paraphrases_never_repeat_the_candidate(benchmark: Benchmark) -> None:
    pool = benchmark.pool("scenes", 1)
    for row in benchmark.asked("scenes", 1):
        assert row["query_txt"] != pool[row["pos_cand_list"][0]]["txt"]


def test_half_of_the_scenes_with_text_need_their_picture(benchmark: Benchmark) -> None:
    rows = benchmark.pool("scenes", 2).values()
    lists = [row for row in rows if not re.search(OF, row["txt"])]
    assert 0.4 < len(lists) / len(rows) < 0.6
    for row in lists:
        named = {re.sub(r"^an? ", "", name) for name in re.split(r", | and ", row["txt"])}
        assert named == things(row)


def test_answers_are_true_of_the_scene_that_is_asked_about(benchmark: Benchmark) -> None:
    pool, scene_of = benchmark.pool("scenes", 6), scenes_by_drawing(benchmark)
    for row in benchmark.asked("scenes", 6):
        answer = pool[row["pos_cand_list"][0]]["txt"]
        x, relation, y = re.fullmatch(rf"the (.+?), {OF} the (.+)", answer).groups()  # type: ignore[union-attr]
        asked = re.search(rf"{OF} the ([^?]+)", row["query_txt"])
        assert asked
        assert (RELATIONS[asked[1]], asked[2]) == (RELATIONS[relation], y)
        assert (x, RELATIONS[relation], y) in scene_of[drawing(row["query_img_path"])]


def drawing(path: str) -> str:
    """Which scene a picture shows, whatever its style: "test/0012_3"."""
    return path.removeprefix("mbeir_images/scenes/").rsplit("_", 1)[0]


def scenes_by_drawing(benchmark: Benchmark) -> dict[str, frozenset[tuple[str, str, str]]]:
    return {drawing(row["img_path"]): facts(row["src_content"]) for row in benchmark.pool("scenes", 0).values()}


def test_another_drawing_of_a_scene_has_another_style(benchmark: Benchmark) -> None:
    pool = benchmark.pool("scenes", 4)
    for row in benchmark.asked("scenes", 4):
        (did,) = row["pos_cand_list"]
        assert drawing(pool[did]["img_path"]) == drawing(row["query_img_path"])
        assert pool[did]["img_path"] != row["query_img_path"]


def edited(source: frozenset[tuple[str, str, str]], text: str) -> frozenset[tuple[str, str, str]]:
    """A scene after an edit, read off its words."""
    names = {x for x, _, _ in source}
    swaps = [
        r"swap the (.+) and the (.+)", r"exchange the (.+) and the (.+)", r"the (.+) and the (.+) trade places",
        r"put the (.+) where the (.+) is, and the other way round",
    ]  # fmt: skip
    renames = [r"replace the (.+) with an? (.+)", r"change the (.+) into an? (.+)"]
    backwards = [r"put an? (.+) in place of the (.+)", r"an? (.+) instead of the (.+)"]
    new = {name: name for name in names}
    if text == "swap them":
        x, y = sorted(names)
        new |= {x: y, y: x}
    elif found := next(filter(None, (re.fullmatch(pattern, text) for pattern in swaps)), None):
        new |= {found[1]: found[2], found[2]: found[1]}
    elif found := next(filter(None, (re.fullmatch(pattern, text) for pattern in renames)), None):
        new[found[1]] = found[2]
    elif found := next(filter(None, (re.fullmatch(pattern, text) for pattern in backwards)), None):
        new[found[2]] = found[1]
    else:
        found = re.fullmatch(rf"(?:move |put |place )?the (.+?) (?:should be )?{OF} the (.+?)(?: instead)?", text)
        assert found, text
        moved = facts(f"{found[1]} {RELATIONS[found[2]]} {found[3]}")
        return moved | {fact for fact in source if {fact[0], fact[2]} != {found[1], found[3]}}
    return frozenset((new[x], relation, new[y]) for x, relation, y in source)


@pytest.mark.parametrize("task", [7, 8])
def test_edits_of_scenes_lead_to_what_they_say(benchmark: Benchmark, task: int) -> None:
    pool, scene_of = benchmark.pool("scenes", task), scenes_by_drawing(benchmark)
    kinds = defaultdict(int)
    for row in benchmark.asked("scenes", task):
        (did,) = row["pos_cand_list"]
        source = scene_of[drawing(row["query_img_path"])]
        assert edited(source, row["query_txt"]) == facts(pool[did]["src_content"]) != source
        kinds[{x for x, _, _ in source} == things(pool[did])] += 1
    assert min(kinds.values()) >= 40  # both rearrangements and replacements


def test_sprites_stand_where_the_scene_says() -> None:
    cells = [Scene("b", ((relation, "a"),)) for relation in ("left", "above")]
    cells += [Scene("b", ((v, "a"), (h, "c"))) for v in ("above", "below") for h in ("left", "right")]
    for scene in cells:
        for seed in range(50):
            found = scenes.places(scene, random.Random(seed))
            assert all(0 <= at <= scenes.CANVAS - 30 for place in found.values() for at in place)
            for relation, thing in scene.parts:
                across, down = (found[thing][axis] - found[scene.anchor][axis] for axis in (0, 1))
                along, other = (across, down) if relation in ("left", "right") else (down, across)
                assert abs(other) <= 6
                assert along * (-1 if relation in ("left", "above") else 1) >= 30
            if len(found) == 3:
                apart = [found["a"][axis] - found["c"][axis] for axis in (0, 1)]
                assert min(map(abs, apart)) >= 30


def test_a_scene_is_drawn_from_its_sprites(benchmark: Benchmark) -> None:
    row = next(row for row in benchmark.pool("scenes", 0).values() if len(things(row)) == 2)
    style = Path(row["img_path"]).stem.rsplit("_", 1)[1]
    hexes = {concept.label: concept.hex for concept in concepts()}
    with Image.open(benchmark.root / row["img_path"]) as image, Pack() as pack:
        canvas = image.convert("RGB")
        for thing in things(row):
            sprite = pack.sprite(style, hexes[thing], 30)
            picture = Image.frombytes("P", (30, 30), sprite.pixels)
            picture.putpalette(sprite.palette)
            wanted_bytes = picture.convert("RGB").tobytes()
            crops = (canvas.crop((x, y, x + 30, y + 30)).tobytes() for x in range(35) for y in range(35))
            assert wanted_bytes in crops
