"""The examples, run as a reader would run them, on the tiny checkpoint and a folder of coloured squares."""

import contextlib
import csv
import io
import json
import re
import runpy
import shutil
import sys
from dataclasses import replace
from itertools import combinations_with_replacement, permutations
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from colours import COLOURS
from foreign import CHECKOUT
from umarvel_hf import Fusion, MBeir, NegativeTable, Result, audit
from umarvel_hf.cli import main
from umarvel_hf.encoding import encode, load
from umarvel_hf.trainer.losses import similarity_of

SHADES = 8
INSTRUCTION = "Find an image that matches the given text."


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    """Eight shades of every colour, and a file that says which is which."""
    folder = tmp_path_factory.mktemp("squares")
    draw = np.random.default_rng(0)
    rows = []
    for colour, rgb in COLOURS.items():
        for shade in range(SHADES):
            changed = np.clip(np.array(rgb) + draw.integers(-15, 16, size=3), 0, 255)
            Image.new("RGB", (56, 56), tuple(changed.tolist())).save(folder / f"{colour}-{shade}.png")
            rows.append({"text": f"a {colour} square", "image": f"{colour}-{shade}.png"})
    with (folder / "pairs.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["text", "image"])
        writer.writeheader()
        writer.writerows(rows)
    (folder / "pairs.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def trios(tmp_path_factory):
    """Two pictures of every choice of three colours, side by side in some order; one text for both, spelled twice."""
    folder = tmp_path_factory.mktemp("trios")
    draw = np.random.default_rng(0)
    rows = []
    for names in combinations_with_replacement(COLOURS, 3):
        for text in (", ".join(names), f"{', '.join(names).capitalize()}."):
            shades = [np.array(COLOURS[names[at]]) + draw.integers(-15, 16, size=3) for at in draw.permutation(3)]
            pixels = np.repeat(np.clip(shades, 0, 255).astype(np.uint8)[None], 28, axis=0).repeat(28, axis=1)
            rows.append([text, f"{len(rows)}.png"])
            Image.fromarray(pixels).save(folder / rows[-1][1])
    with (folder / "pairs.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "image"), *rows])
    return folder


@pytest.fixture(scope="module")
def prepared(trios, tmp_path_factory):
    """These pairs as a benchmark."""
    folder = tmp_path_factory.mktemp("prepared")
    run_example("prepare_pairs.py", trios / "pairs.csv", folder, "--held-out", 0.2)
    return folder


@pytest.fixture(scope="module")
def progressed(checkpoint, squares, prepared, tmp_path_factory):
    """What three contrastive stages print, and their folder."""
    out = tmp_path_factory.mktemp("progressed")
    with (out / "nli.csv").open("w", newline="") as file:
        said = [(f"{one} things", f"it is {one}", f"it is {other}") for one, other in permutations(COLOURS, 2)]
        csv.writer(file).writerows([("sent0", "sent1", "hard_neg"), *said])
    data = ("--texts", out / "nli.csv", "--captions", squares / "pairs.csv", "--data", prepared)
    settings = ("--epochs", 6, "--batch-size", 12, "--mini-batch-size", 12, "--learning-rate", 3e-3)
    return run_example("progressive_transition.py", checkpoint, out, *data, *settings), out


@pytest.fixture(scope="module")
def trained(progressed):
    """The folder of the checkpoint that they end with."""
    return progressed[1] / "3-instructions/model"


@pytest.fixture(scope="module")
def mined(trained, prepared, tmp_path_factory):
    """What mining prints, and the folder of its tables."""
    out = tmp_path_factory.mktemp("mined")
    return run_example("mine_hard_negatives.py", trained, prepared, out, "--depth", 40), out


@pytest.fixture(scope="module")
def judge(checkpoint, prepared, mined, tmp_path_factory):
    """What the training of a re-ranker prints, and its folder; right is, for all it sees, what has blue in it."""
    out, benchmark = tmp_path_factory.mktemp("judge"), MBeir(prepared)
    table = NegativeTable.open(mined[1] / "local.parquet")
    pool = benchmark.union_pool("train")
    texts = {query.qid: (query.text or pool[query.positives[0]].text).lower() for query in benchmark.train_queries()}
    lists = []
    for one in table:
        if "blue" in texts[one.qid]:
            wrong = np.array(["blue" not in texts[did] for did in one.dids])
            lists.append(replace(one, dids=tuple(np.array(one.dids)[wrong].tolist()), scores=one.scores[wrong]))
    NegativeTable.write(out / "blue.parquet", lists, table.facts)
    settings = ("--epochs", 10, "--batch-size", 10, "--learning-rate", 3e-3)
    return run_example("train_reranker.py", checkpoint, prepared, out / "blue.parquet", out, *settings), out


def run_example(name, *arguments):
    """Run a script of ``examples/``; returns what it printed."""
    printed = io.StringIO()
    with mock.patch.object(sys, "argv", [name, *map(str, arguments)]), contextlib.redirect_stdout(printed):
        runpy.run_path(str(CHECKOUT / "examples" / name), run_name="__main__")
    return printed.getvalue()


def shares(printed, what):
    """The percentages that are printed behind a word or two."""
    return [float(number) for number in re.findall(rf"{what}:? ([\d.]+)%", printed)]


def found(printed):
    """Scores by name, in the order printed."""
    return {name: float(score) for score, name in re.findall(r"^\d+\. (\S+)  (.+)$", printed, re.MULTILINE)}


def test_embed_and_search_finds_a_picture_and_a_text_by_themselves(checkpoint, squares, tmp_path):
    folder = tmp_path / "mine"
    (folder / "notes").mkdir(parents=True)
    for colour in COLOURS:
        Image.open(squares / f"{colour}-0.png").save(folder / f"{colour}.png")
        (folder / "notes" / f"{colour}.txt").write_text(f"a {colour} square")
    options = ("--index", tmp_path / "index", "-k", 12)

    printed = run_example("embed_and_search.py", checkpoint, folder, "--image", squares / "blue-0.png", *options)
    assert "12 items in" in printed and "12 of them new" in printed
    by_picture = found(printed)
    assert next(iter(by_picture.items())) == ("blue.png", 1.0)

    (folder / "notes/more.txt").write_text("a square that is neither red nor green")
    printed = run_example("embed_and_search.py", checkpoint, folder, "--text", "a cyan square", *options)
    assert "13 items in" in printed and "1 of them new" in printed
    assert next(iter(found(printed).items())) == ("notes/cyan.txt", 1.0)

    both = ("--text", "a cyan square", "--image", squares / "blue-0.png")
    plain = found(run_example("embed_and_search.py", checkpoint, folder, *both, *options))
    steered = found(
        run_example("embed_and_search.py", checkpoint, folder, *both, "--instruction", "Find it.", *options)
    )
    assert len(plain) == len(steered) == 12
    assert plain != steered != by_picture


@pytest.mark.parametrize(
    ("query", "message"), [((), "give --text, --image, or both"), (("--text", "a"), "no pictures")]
)
def test_embed_and_search_says_what_is_missing(checkpoint, tmp_path, capsys, query, message):
    with pytest.raises(SystemExit) as end:
        run_example("embed_and_search.py", checkpoint, tmp_path, *query)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "options"), [("pairs.csv", ()), ("pairs.jsonl", ("--lora", "--learning-rate", "2e-2"))]
)
def test_finetune_on_pairs_learns_to_find_pictures_it_has_not_seen(checkpoint, squares, tmp_path, file, options):
    settings = ("--batch-size", "24", "--learning-rate", "3e-3", "--epochs", "14", *options)
    printed = run_example("finetune_on_pairs.py", checkpoint, squares / file, tmp_path, *settings)
    before, after = map(float, re.search(r"held-out pairs: (.+)% before, (.+)% after", printed).groups())
    assert before < after == 100

    trained = load(str(tmp_path / "model"), device="cpu")
    pictures = encode(trained, [squares / f"{colour}-0.png" for colour in COLOURS])
    texts = encode(trained, [f"a {colour} square" for colour in COLOURS], prompt=INSTRUCTION)
    assert (texts @ pictures.T).argmax(axis=1).tolist() == list(range(len(COLOURS)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,picture\nred,red-0.png\n", r"columns \['text', 'picture'\], image not among them"),
        ("text,image\nred,red-0.png\nblue,no.png\n", "pair 2 of .* is .*no.png'}; it needs"),
        ("text,image\n,red-0.png\n", "pair 1 of .* is {'text': None"),
    ],
)
def test_finetune_on_pairs_names_what_is_no_pair(checkpoint, squares, tmp_path, capsys, content, message):
    shutil.copyfile(squares / "red-0.png", tmp_path / "red-0.png")
    (tmp_path / "bad.csv").write_text(content)
    with pytest.raises(SystemExit) as end:
        run_example("finetune_on_pairs.py", checkpoint, tmp_path / "bad.csv", tmp_path / "out")
    assert end.value.code == 2 and re.search(message, capsys.readouterr().err)


def test_prepared_pairs_are_a_sound_benchmark(trios, prepared, checkpoint, tmp_path):
    found = audit(prepared)
    assert found.findings == ()  # so nothing of the test is seen in training
    assert found.counts["training queries"] == 34 + 68 and found.counts["images"] == 112
    benchmark = MBeir(prepared)
    for split in ("val", "test"):
        by_text, by_picture = benchmark.tasks(split)
        assert (by_text.name, by_picture.name) == ("pairs_task0", "pairs_task3")
        assert {len(query.positives) for query in benchmark.queries(by_text, split)} == {2}
        assert {len(query.positives) for query in benchmark.queries(by_picture, split)} == {1}
        assert len(benchmark.pool(by_text, split)) == 22 and len(benchmark.pool(by_picture, split)) == 11
        assert len(benchmark.union_pool(split)) == 33
    assert main(["audit", str(prepared)]) == 0
    with pytest.raises(SystemExit):  # another split would put some of the test into the training
        run_example("prepare_pairs.py", trios / "pairs.csv", prepared, "--seed", 1)
    main(["evaluate", str(checkpoint), "--data", str(prepared), "--out", str(tmp_path), "--device", "cpu"])
    assert [task.name for task in Result.load(tmp_path).tasks] == ["pairs_task0", "pairs_task3"]


def test_pairs_that_share_a_text_or_a_picture_are_right_answers_in_one_split(squares, tmp_path):
    rows = [(colour, f"{colour}-0.png") for colour in COLOURS]
    shutil.copyfile(squares / "red-0.png", tmp_path / "copy.png")
    rows += [(" RED.", "red-1.png"), ("rot", tmp_path / "copy.png"), ("rot", tmp_path / "copy.png")]
    file = squares / "some.jsonl"
    file.write_text("".join(json.dumps({"text": text, "image": str(image)}) + "\n\n" for text, image in rows))
    out = tmp_path / "out"
    run_example("prepare_pairs.py", file, out, "--held-out", 0.2, "--link")
    assert audit(out).findings == ()
    benchmark = MBeir(out)
    asked = {"train": benchmark.train_queries()}
    for split in ("val", "test"):
        asked[split] = [query for task in benchmark.tasks(split) for query in benchmark.queries(task, split)]
    split_of = {query.qid: split for split, queries in asked.items() for query in queries}
    right = {query.text: query.positives for queries in asked.values() for query in queries if query.text}
    assert right.keys() == {f"{text}." for text in (*COLOURS, "rot")}
    assert len(right["red."]) == 2 and right["rot."] == right["red."][:1]
    assert len({split_of[did] for did in right["red."]}) == 1
    picture = next(query for query in asked[split_of[right["rot."][0]]] if query.qid == right["rot."][0])
    assert len(picture.positives) == 2 and picture.image.resolve() == squares / "red-0.png"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("a square", "red-0.png")], "a split would be empty"),
        ([('" ."', "red-0.png")], "pair 1 of .* has text '\" .\"' and image .*; it needs both"),
        ([("red", "red-0.png"), ("red", "no.png")], "pair 2 of .* has text 'red' and image '.*no.png'; it needs both"),
    ],
)
def test_pairs_that_make_no_benchmark_are_refused(squares, tmp_path, capsys, rows, message):
    file = squares / "bad.csv"
    with file.open("w", newline="") as opened:
        csv.writer(opened).writerows([("text", "image"), *rows])
    with pytest.raises(SystemExit):
        run_example("prepare_pairs.py", file, tmp_path)
    assert re.search(message, capsys.readouterr().err)


def test_three_stages_lead_to_a_model_that_finds_what_it_has_not_seen(progressed):
    printed, out = progressed
    before, texts, captions, instructions = shares(printed, "R@1")
    assert instructions > 15 + max(before, texts, captions)
    for stage in ("1-texts", "2-captions", "3-instructions"):
        assert encode(out / stage / "model", ["red"]).shape == (1, 32)


def test_mined_lists_hold_no_right_answer(prepared, mined):
    printed, out = mined
    benchmark = MBeir(prepared)
    right = {query.qid: set(query.positives) for query in benchmark.train_queries()}
    for pool, sizes in (("local", {33, 40}), ("union", {40})):  # a picture asks 34 texts, one of them right
        table = NegativeTable.open(out / f"{pool}.parquet")
        assert table.qids == sorted(right, key=table.qids.index) and len(table) == 34 + 68
        assert {len(one.dids) for one in table} == sizes
        for one in table:
            assert set(one.positives) == right[one.qid] and right[one.qid].isdisjoint(one.dids)
    assert printed.count("query 200:") == 2 * 3
    assert 0 < shares(printed, "right answer in")[0] < 100


def test_hard_negatives_mined_twice_lift_the_model(trained, prepared, mined, tmp_path):
    settings = ("--negatives", 2, "--window", 0, 20, "--batch-size", 12, "--mini-batch-size", 12)
    more = ("--learning-rate", 3e-3, "--epochs", 4, "--remine-every-epochs", 2)
    printed = run_example("train_on_hard_negatives.py", trained, prepared, mined[1], tmp_path, *settings, *more)
    for pool in ("local", "union"):
        before, after = map(float, re.search(rf"{pool} pool: (.+)% before, (.+)% after", printed).groups())
        assert before < after
    assert [path.name for path in (tmp_path / "mined").iterdir()] == ["epoch-2"]
    first, again = (NegativeTable.open(at / "union.parquet") for at in (mined[1], tmp_path / "mined/epoch-2"))
    assert first.qids == again.qids and [one.dids for one in first] != [one.dids for one in again]


def test_a_trained_reranker_knows_right_from_mined(judge):
    printed, out = judge
    before, after = map(float, re.search(r"held-out lists: (.+)% before, (.+)% after", printed).groups())
    assert before + 10 < after and after > 60
    held_out, learned = (set(NegativeTable.open(out / f"{name}.parquet").qids) for name in ("held-out", "learned"))
    assert held_out.isdisjoint(learned) and len(learned) > len(held_out) > 5


def test_distillation_brings_the_model_close_to_its_teacher(trained, judge, prepared, mined, tmp_path):
    every = NegativeTable.open(mined[1] / "local.parquet")
    table = NegativeTable.write(tmp_path / "some.parquet", list(every)[::4], every.facts)
    settings = ("--top", 6, "--epochs", 4, "--batch-size", 5, "--mini-batch-size", 5, "--learning-rate", 2e-4)
    run_example("distill_reranker.py", trained, judge[1] / "model", prepared, table.path, tmp_path, *settings)
    fusion = Fusion.load(tmp_path / "fusion.json")
    assert fusion.split == "val" and fusion.curve[str(fusion.weight)] == max(fusion.curve.values())
    scored = NegativeTable.open(tmp_path / "scored.parquet")
    assert all(len(one.teacher_scores) == 6 for one in scored)
    distances = [divergence(load(folder), MBeir(prepared), scored) for folder in (trained, tmp_path / "model")]
    assert distances[1] < 0.8 * distances[0]


def divergence(model, benchmark, scored):
    """The mean Kullback-Leibler divergence of the model's distributions over judged candidates from the teacher's."""
    temperature, pool = similarity_of(model).temperature.item(), benchmark.union_pool("train")
    vectors = dict(zip(pool, encode(model, [one.item for one in pool.values()]), strict=True))
    found = []
    for query in benchmark.train_queries():
        if query.qid in scored:
            one, prompt = scored[query.qid], benchmark.prompts(query, pool[query.positives[0]].modality)[0]
            dids, scores = one.positives + one.dids[:6], [*one.positive_teacher_scores, *one.teacher_scores]
            cosines = np.array([vectors[did] for did in dids]) @ encode(model, [query.item], prompt=prompt)[0]
            student, teacher = (log_softmax(of / temperature) for of in (cosines, np.array(scores) / 2))
            found.append(float((np.exp(teacher) * (teacher - student)).sum()))
    return np.mean(found)


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum())


def test_the_python_of_the_readme_runs(checkpoint, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-embedder").symlink_to(checkpoint)
    for name, colour in (("heart", "red"), ("cat", "yellow")):
        Image.new("RGB", (56, 56), COLOURS[colour]).save(f"{name}.png")
    blocks = re.findall(r"```python\n(.+?)```", (CHECKOUT / "README.md").read_text(), re.DOTALL)
    ran = [runpy.run_path(str(write(tmp_path / "block.py", block))) for block in blocks]
    sentence_transformers, transformers, ours = ran
    assert sentence_transformers["candidates"].shape == (2, 32)
    # "the vectors are the same": by two ways of loading, one query
    np.testing.assert_allclose(transformers["vector"].detach(), sentence_transformers["queries"], rtol=0, atol=1e-6)
    assert ours["vectors"].shape == (3, 32)
    assert (tmp_path / "my-index/manifest.json").is_file()
    printed = capsys.readouterr().out
    assert printed.startswith("tensor([[") and "[Hit(id=" in printed


def write(path, text):
    path.write_text(text)
    return path
