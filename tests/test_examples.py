"""The examples, run as a reader would run them, on the tiny checkpoint and a folder of coloured squares."""

import csv
import json
import re
import runpy
import shlex
import sys

import numpy as np
import pytest
from PIL import Image

import umarvel_hf
from colours import COLOURS
from foreign import CHECKOUT
from umarvel_hf.cli import _parser
from umarvel_hf.encoding import encode, load

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


@pytest.fixture
def run_example(monkeypatch, capsys):
    """``run_example(name, *arguments)``: run a script of ``examples/``; returns what it printed."""

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(CHECKOUT / "examples" / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def found(printed):
    """Scores by name, in the order printed."""
    return {name: float(score) for score, name in re.findall(r"^\d+\. (\S+)  (.+)$", printed, re.MULTILINE)}


def test_embed_and_search_finds_a_picture_and_a_text_by_themselves(run_example, checkpoint, squares, tmp_path):
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
def test_embed_and_search_says_what_is_missing(run_example, checkpoint, tmp_path, capsys, query, message):
    with pytest.raises(SystemExit) as end:
        run_example("embed_and_search.py", checkpoint, tmp_path, *query)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "options"), [("pairs.csv", ()), ("pairs.jsonl", ("--lora", "--learning-rate", "2e-2"))]
)
def test_finetune_on_pairs_learns_to_find_pictures_it_has_not_seen(
    run_example, checkpoint, squares, tmp_path, file, options
):
    settings = ("--batch-size", "24", "--learning-rate", "3e-3", "--epochs", "14", *options)
    printed = run_example("finetune_on_pairs.py", checkpoint, squares / file, tmp_path, *settings)
    before, after = map(float, re.search(r"held-out pairs: (.+)% before, (.+)% after", printed).groups())
    assert before < after == 100

    trained = load(str(tmp_path / "model"), device="cpu")
    pictures = encode(trained, [squares / f"{colour}-0.png" for colour in COLOURS])
    texts = encode(trained, [f"a {colour} square" for colour in COLOURS], prompt=INSTRUCTION)
    assert (texts @ pictures.T).argmax(axis=1).tolist() == list(range(len(COLOURS)))


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


@pytest.mark.parametrize("page", ["README.md", "docs/evaluation.md"])
def test_a_page_names_only_what_is_there(page):
    text = (CHECKOUT / page).read_text()
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert (CHECKOUT / page).parent.joinpath(target).exists(), target
    for script in re.findall(r"python (examples/\S+)", text):
        assert (CHECKOUT / script).is_file(), script
    for names in re.findall(r"^from umarvel_hf import (.+)$", text, re.MULTILINE):
        assert set(names.split(", ")) <= set(umarvel_hf.__all__)
    commands = re.findall(r"^umarvel (.+)$", text, re.MULTILINE)
    assert len(commands) >= 4
    for command in commands:
        _parser().parse_args(shlex.split(command, comments=True))
