"""The audit of a folder in M-BEIR's layout: planted problems, each found once and nothing beside it."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
from PIL import Image

from colours import COLOURS, write_benchmark, write_lines
from umarvel_hf.emoji import benchmark_dir
from umarvel_hf.evaluation.audit import KINDS, audit

QUERIES = "query/test/mbeir_plain_task0_test.jsonl"
PICTURES = "query/test/mbeir_plain_task3_test.jsonl"
SHADES = "query/test/mbeir_dark_task4_test.jsonl"
POOL = "cand_pool/local/mbeir_plain_task0_cand_pool.jsonl"
CAPTIONS = "cand_pool/local/mbeir_plain_task3_cand_pool.jsonl"
DARK = "cand_pool/local/mbeir_dark_task4_cand_pool.jsonl"
UNION = "cand_pool/global/mbeir_union_test_cand_pool.jsonl"
TRAIN = "query/union_train/mbeir_union_up_train.jsonl"
TRAIN_POOL = "cand_pool/global/mbeir_union_train_cand_pool.jsonl"
QRELS = "qrels/test/mbeir_plain_task0_test_qrels.txt"
TRAIN_QRELS = "qrels/train/mbeir_plain_train_qrels.txt"
INSTRUCTIONS = "instructions/query_instructions.tsv"


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """The tiny benchmark with a validation split and with a training split of pictures of its own."""
    root = write_benchmark(tmp_path_factory.mktemp("clean") / "data")
    for at, (name, rgb) in enumerate(COLOURS.items()):
        Image.new("RGB", (9, 9), rgb).save(root / f"mbeir_images/train_{name}.png")
        change(root / TRAIN, at, qid=f"1:{100 + at}", query_txt=f"all {name}", pos_cand_list=[f"1:{100 + at}"])
        change(root / TRAIN_POOL, at, did=f"1:{100 + at}", img_path=f"mbeir_images/train_{name}.png")
    write_lines(root / "query/train/mbeir_plain_train.jsonl", lines(root / TRAIN))
    write_lines(root / TRAIN_QRELS, [f"1:{100 + at} 0 1:{100 + at} 1 0" for at in range(6)])
    append(root / TRAIN, lines(root / TRAIN)[0])  # repeated, as M-BEIR does
    for kind, end in (("query", ".jsonl"), ("qrels", "_qrels.txt")):
        (root / kind / "val").mkdir()
        shutil.copy(root / f"{kind}/test/mbeir_dark_task4_test{end}", root / f"{kind}/val/mbeir_dark_task4_val{end}")
    return root


@pytest.fixture
def root(clean, tmp_path):
    return shutil.copytree(clean, tmp_path / "data")


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def append(path: Path, *more: str) -> None:
    write_lines(path, [*lines(path), *more])


def change(path: Path, at: int, **fields) -> None:
    changed = lines(path)
    changed[at] = json.dumps(json.loads(changed[at]) | fields)
    write_lines(path, changed)


def remove(path: Path, at: int) -> None:
    write_lines(path, [line for number, line in enumerate(lines(path)) if number != at])


def found(root: Path, **options) -> list[tuple[str, str, tuple[str, ...]]]:
    return [(one.kind, one.where, one.examples) for one in audit(root, **options).findings]


@pytest.mark.parametrize("images", [True, False])
def test_a_clean_folder_gives_nothing(clean, images):
    result = audit(clean, images=images)
    assert result.findings == () and result.sound
    assert result.counts == {
        "queries": 24,
        "training queries": 7,
        "local candidates": 18,
        "union candidates": 24,
        "images": 18,
    }
    assert result.text().splitlines()[1] == "sound: 0 defects, 0 notes"


def in_both_pools(local: str, at: int, **fields):
    """The change of a candidate of a test pool, and of its copy in the union."""
    start = {POOL: 0, CAPTIONS: 6, DARK: 12}[local]
    return lambda root: (change(root / local, at, **fields), change(root / UNION, start + at, **fields))


def as_named(root: Path, *, image: str, copy: str) -> None:
    shutil.copy(root / f"mbeir_images/{image}.png", root / f"mbeir_images/{copy}.png")


def break_image(root: Path) -> None:
    path = root / "mbeir_images/plain_green.png"
    path.write_bytes(path.read_bytes()[:60])


def ask_with_dark_red(root: Path) -> None:
    """The dark red that the test asks with is the picture of another answer, byte for byte."""
    as_named(root, image="dark_blue", copy="asked")
    change(root / SHADES, 0, query_img_path="mbeir_images/asked.png")


def start_from_a_wrong_answer(root: Path) -> None:
    change(
        root / SHADES, 0, query_img_path="mbeir_images/dark_blue.png", query_txt="redder", query_modality="image,text"
    )
    append(root / INSTRUCTIONS, "image,text\timage\tdark\t2\tChange it.")


def two_alike(root: Path) -> None:
    as_named(root, image="plain_red", copy="again")
    in_both_pools(POOL, 3, img_path="mbeir_images/again.png")(root)
    remove(root / QUERIES, 3)
    remove(root / QRELS, 3)


def overlap(root: Path) -> None:
    append(root / DARK, lines(root / CAPTIONS)[5])


def number_nine(root: Path) -> None:
    """The shades become a task that M-BEIR does not have; nothing validates it."""
    for path in (*root.glob("query/val/*"), *root.glob("qrels/val/*")):
        path.unlink()
    for path in root.glob("*/*/*dark_task4*"):
        path.rename(path.with_name(path.name.replace("task4", "task9")))
    for at in range(6):
        change(root / SHADES.replace("task4", "task9"), at, task_id=9)


PLANTED = {
    "a cut line": (
        lambda root: append(root / QUERIES, '{"qid": "1:9", "query_t'),
        ("unreadable line", f"{QUERIES}:7", '"1:9", "query_t'),
    ),
    "a did that is a number": (
        lambda root: append(root / POOL, '{"did": 9, "txt": "a", "img_path": null, "modality": "text"}'),
        ("unreadable line", f"{POOL}:7", "9 has did 9"),
    ),
    "a text that is not Unicode": (
        lambda root: append(root / POOL, '{"did": "1:9", "txt": "a\\ud800", "img_path": null, "modality": "text"}'),
        ("unreadable line", f"{POOL}:7", "'1:9' has txt 'a\\ud800'"),
    ),
    "a training query of a task that does not exist": (
        lambda root: change(root / TRAIN, 3, task_id=99),
        ("unknown task", f"{TRAIN}:4", "1:103 says 99"),
    ),
    "a task that does not exist": (
        number_nine,
        ("unknown task", SHADES.replace("task4", "task9"), "task id 9; there are 0 to 8"),
    ),
    "a query of another task": (
        lambda root: change(root / QUERIES, 2, task_id=3),
        ("wrong task id", f"{QUERIES}:3", "1:2 says 3"),
    ),
    "an answer judged twice": (
        lambda root: append(root / QRELS, "1:2\t0 1:2 1 0"),
        ("repeated judgement", f"{QRELS}:7", "1:2: 1:2"),
    ),
    "negatives that are no list": (
        lambda root: append(root / QUERIES, lines(root / QUERIES)[0].replace("[]", '"1:2"')),
        ("unreadable line", f"{QUERIES}:7", "'1:0' has neg_cand_list '1:2'"),
    ),
    "four columns": (
        lambda root: append(root / QRELS, "1:0 0 1:1 1"),
        ("unreadable line", f"{QRELS}:7", "1:0 0 1:1 1"),
    ),
    "prompts twice": (
        lambda root: append(root / INSTRUCTIONS, "text\timage\tplain\t1\tAgain."),
        ("unreadable line", f"{INSTRUCTIONS}:5", "1, text, image"),
    ),
    "no qrels": (lambda root: (root / QRELS).unlink(), ("missing file", QRELS, "no qrels")),
    "an image that is not there": (
        lambda root: (root / "mbeir_images/plain_green.png").unlink(),
        ("missing image", f"{POOL}:2", "1:1: mbeir_images/plain_green.png"),
    ),
    "an image cut short": (break_image, ("unreadable image", f"{POOL}:2", "1:1: mbeir_images/plain_green.png")),
    "a query without its text": (
        lambda root: change(root / QUERIES, 2, query_txt=" "),
        ("empty text", f"{QUERIES}:3", "1:2"),
    ),
    "text that is not said": (
        lambda root: change(root / PICTURES, 1, query_txt="green"),
        ("wrong modality", f"{PICTURES}:2", "1:11 says image and has image,text"),
    ),
    "a did twice": (lambda root: append(root / POOL, lines(root / POOL)[2]), ("repeated id", f"{POOL}:7", "1:2")),
    "a qid twice": (
        lambda root: append(root / QUERIES, lines(root / QUERIES)[2]),
        ("repeated id", f"{QUERIES}:7", "1:2"),
    ),
    "a repeated training row that differs": (
        lambda root: change(root / TRAIN, 6, query_txt="quite red"),
        ("qid of two queries", f"{TRAIN}:7", "1:100"),
    ),
    "a did of two candidates": (
        lambda root: change(root / CAPTIONS, 1, txt="a green circle"),
        ("did of two candidates", f"{UNION}:8", "1:11"),
    ),
    "a positive that no pool holds": (
        lambda root: change(root / QUERIES, 1, pos_cand_list=["1:1", "1:77"]),
        ("dangling positive", f"{QUERIES}:2", "1:1: 1:77"),
    ),
    "a training positive that only the test pools hold": (
        lambda root: change(root / TRAIN, 2, pos_cand_list=["1:102", "1:0"]),
        ("dangling positive", f"{TRAIN}:3", "1:102: 1:0"),
    ),
    "a negative that no pool holds": (
        lambda root: change(root / QUERIES, 1, neg_cand_list=["1:2", "1:77"]),
        ("dangling negative", f"{QUERIES}:2", "1:1: 1:77"),
    ),
    "qrels of another query": (
        lambda root: append(root / QRELS, "1:77 0 1:0 1 0"),
        ("judged query missing", f"{QRELS}:7", "1:77: 1:0"),
    ),
    "qrels of another pool": (
        lambda root: append(root / QRELS, "1:0 0 1:10 1 0"),
        ("judged candidate missing", f"{QRELS}:7", "1:0: 1:10"),
    ),
    "a query that is not judged": (lambda root: remove(root / QRELS, 4), ("no right answer", f"{QUERIES}:5", "1:4")),
    "a training query without positives": (
        lambda root: change(root / TRAIN, 1, pos_cand_list=[]),
        ("no right answer", f"{TRAIN}:2", "1:101"),
    ),
    "qrels that say more": (
        lambda root: append(root / QRELS, "1:3 0 1:4 1 0"),
        ("qrels contradict positives", f"{QUERIES}:4", "1:3"),
    ),
    "training qrels that say more": (
        lambda root: append(root / TRAIN_QRELS, "1:103 0 1:104 1 0"),
        ("qrels contradict positives", "query/train/mbeir_plain_train.jsonl:4", "1:103"),
    ),
    "no instruction": (
        lambda root: remove(root / INSTRUCTIONS, 2),
        ("missing instruction", INSTRUCTIONS, "'1, image, text' for 1:10"),
    ),
    "a query's picture in its pool": (ask_with_dark_red, ("query finds itself", f"{SHADES}:1", "2:0: 2:2")),
    "a wrong answer alike": (two_alike, ("right and wrong alike", f"{POOL}:4", "1:0 is right for 1:0, 1:3 is not")),
    "two queries alike": (
        lambda root: change(root / QUERIES, 3, query_txt="red."),
        ("alike with other answers", f"{QUERIES}:4", "1:3: as 1:0"),
    ),
    "a union that lacks one": (lambda root: remove(root / UNION, 13), ("union lacks candidates", f"{DARK}:2", "2:1")),
    "a union that has another": (
        lambda root: append(root / UNION, '{"did": "1:99", "txt": "more", "img_path": null, "modality": "text"}'),
        ("union has others", f"{UNION}:19", "1:99"),
    ),
}
NOTES = {
    "no training pool": (
        lambda root: (root / TRAIN_POOL).unlink(),
        ("no union pool", "cand_pool/global", "mbeir_union_train_cand_pool.jsonl"),
    ),
    "qrels without queries": (
        lambda root: shutil.copy(root / QRELS, root / "qrels/val/mbeir_plain_task0_val_qrels.txt"),
        ("file without queries", "qrels/val/mbeir_plain_task0_val_qrels.txt", "no query file"),
    ),
    "a picture to start from in its pool": (
        start_from_a_wrong_answer,
        ("query image in pool", f"{SHADES}:1", "2:0: 2:2"),
    ),
    "pools that overlap": (overlap, ("overlapping pools", "cand_pool/local", "1:15: mbeir_dark_task4")),
    "a test query that is trained": (
        lambda root: change(root / TRAIN, 3, query_txt="yellow"),
        ("test query in training", f"{TRAIN}:4", "1:103"),
    ),
    "a test query among the training candidates": (
        lambda root: as_named(root, image="plain_cyan", copy="train_cyan"),
        ("test query as candidate", f"{TRAIN_POOL}:6", "1:105"),
    ),
}


@pytest.mark.parametrize("name", [*PLANTED, *NOTES])
def test_a_planted_problem_is_found_and_nothing_else(root, name):
    plant, (kind, where, example) = (PLANTED | NOTES)[name]
    plant(root)
    result = audit(root)
    assert [(one.kind, one.where, one.count) for one in result.findings] == [(kind, where, 1)]
    assert example in result.findings[0].examples[0]
    assert result.sound == (name in NOTES) == (result.findings[0].severity == "note")
    assert f"{kind} (1), {where}\n    {KINDS[kind][1]}\n    - " in result.text()


def test_every_kind_is_planted():
    assert {kind for _, (kind, _, _) in (PLANTED | NOTES).values()} == set(KINDS)


def test_many_problems_are_found_in_one_go_and_five_examples_shown(root):
    for at in range(6):
        change(root / QUERIES, at, neg_cand_list=["1:77"])
    (root / "mbeir_images/plain_green.png").unlink()
    (root / INSTRUCTIONS).write_bytes(b"a header\n\xff\xfe\n")
    (root / UNION).unlink()
    (root / POOL.replace("task0", "task6")).write_text("")
    (root / PICTURES).rename(root / PICTURES.replace("task3", "task1"))
    result = audit(root)
    kinds = [(one.kind, one.where) for one in result.findings]
    assert kinds == [
        ("missing file", "cand_pool/local"),
        ("missing file", POOL.replace("task0", "task6")),
        ("unreadable line", f"{INSTRUCTIONS}:2"),
        ("missing image", f"{POOL}:2"),
        ("wrong task id", f"{PICTURES.replace('task3', 'task1')}:1"),
        ("dangling negative", f"{QUERIES}:1"),
        ("missing instruction", INSTRUCTIONS),
        ("no union pool", "cand_pool/global"),
        ("file without queries", CAPTIONS),
        ("file without queries", POOL.replace("task0", "task6")),
        ("file without queries", QRELS.replace("task0", "task3")),
    ]
    dangling = result.findings[5]
    assert dangling.count == 6
    assert dangling.examples == tuple(f"1:{at}: 1:77" for at in range(5))
    assert not result.sound
    written = json.loads(result.as_json())
    assert written["sound"] is False and written["findings"][5] == asdict(dangling) | {
        "examples": list(dangling.examples)
    }


def test_without_opening_images_only_their_paths_are_known(root):
    break_image(root)
    ask_with_dark_red(root)  # a copy of the bytes under another path
    assert found(root, images=False) == []
    change(root / SHADES, 0, query_img_path="mbeir_images/dark_blue.png")
    (root / "mbeir_images/plain_cyan.png").unlink()
    assert [kind for kind, _, _ in found(root, images=False)] == ["missing image", "query finds itself"]


def test_pools_of_a_split_are_compared_with_the_union_of_that_split(root):
    val, test = (root / DARK.replace("_cand", f"_{split}_cand") for split in ("val", "test"))
    shutil.copy(root / DARK, val)
    (root / DARK).rename(test)
    assert found(root) == []
    remove(val, 0)
    kinds = {kind for kind, _, _ in found(root)}
    assert kinds == {"dangling positive", "judged candidate missing"}


def test_a_folder_without_files_and_no_folder(tmp_path):
    result = audit(tmp_path)
    assert [(one.kind, one.where) for one in result.findings] == [
        ("missing file", "instructions/query_instructions.tsv"),
        ("missing file", "query"),
    ]
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        audit(tmp_path / "nothing")


def test_the_embedded_benchmark_is_sound():
    result = audit(benchmark_dir(), images=False)
    assert result.sound
    assert {one.kind for one in result.findings} == {
        "overlapping pools",
        "test query in training",
        "test query as candidate",
    }


@pytest.mark.slow
def test_the_embedded_benchmark_is_sound_to_the_byte():
    assert audit(benchmark_dir(), show_progress=True).sound
