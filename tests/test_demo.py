"""The demo: end to end on a benchmark of coloured squares, and, where time allows, the real one."""

import shutil

import pytest

from colours import COLOURS, write_benchmark, write_training_split
from umarvel_hf import searching
from umarvel_hf.data import MBeir
from umarvel_hf.demo import QUERIES, run_demo
from umarvel_hf.emoji import INSTRUCTIONS
from umarvel_hf.encoding import load
from umarvel_hf.evaluation.results import MODEL, Result
from umarvel_hf.searching import search


@pytest.fixture
def small(tmp_path, monkeypatch, checkpoint):
    """The folder of a small benchmark, which the demo takes for the embedded one; a tiny random model is its model."""
    folder = write_training_split(write_benchmark(tmp_path / "small"))
    for module in ("demo", "searching"):
        monkeypatch.setattr(f"umarvel_hf.{module}.benchmark_dir", lambda: folder)
        monkeypatch.setattr(f"umarvel_hf.{module}.model_dir", lambda: checkpoint)
    monkeypatch.setenv("UMARVEL_CACHE", str(tmp_path / "cache"))
    return folder


def test_the_demo_evaluates_searches_and_writes_its_report(small, tmp_path):
    printed = str(run_demo(tmp_path / "out"))
    result = Result.load(tmp_path / "out/result.json")
    assert result.settings["model"] == "shipped with the package"
    assert [(task.dataset, task.task_id) for task in result.tasks] == [("dark", 4), ("plain", 0), ("plain", 3)]
    assert set(result.tasks[0].scores) == {MODEL, "random", "BM25", "pixel kNN"}
    assert result.table() in printed
    for query in QUERIES:
        found = printed.split(repr(query))[1].splitlines()[1:4]
        assert all(line.endswith(".png") for line in found)
    page = (tmp_path / "out/report.html").read_text()
    assert "data:image/png;base64," in page
    assert printed.endswith(f"report: {(tmp_path / 'out/report.html').resolve()}")


def test_the_demo_twice_shows_the_same(small, tmp_path):
    assert str(run_demo(tmp_path / "out")) == str(run_demo(tmp_path / "out"))


def test_the_demo_can_train_its_model_first(small, tmp_path, checkpoint, monkeypatch):
    asked = []

    def train(recipe, out, *, benchmark):
        asked.append((recipe, out, benchmark.root))
        return checkpoint

    monkeypatch.setattr("umarvel_hf.trainer.run.train", train)
    run_demo(tmp_path / "out", train=True)
    assert asked == [("emoji", tmp_path / "out/run", small)]
    settings = Result.load(tmp_path / "out/result.json").settings
    assert (settings["model"], settings["command"]) == ("trained just now", "umarvel demo --train")


def test_the_embedded_pictures_are_those_without_a_text(small):
    pool = MBeir(small).union_pool("test")
    found = search("red", k=99)
    assert len(found) == len([one for one in pool.values() if one.image and not one.text]) == 2 * len(COLOURS)
    scores = [one.score for one in found]
    assert scores == sorted(scores, reverse=True)


def test_a_model_whose_weights_are_in_several_files_searches_the_embedded_pictures(small, checkpoint, tmp_path):
    load(str(checkpoint), device="cpu")[0].model.save_pretrained(tmp_path / "sharded", max_shard_size="50KB")
    for path in checkpoint.iterdir():
        if path.is_file() and path.name != "model.safetensors" and not (tmp_path / "sharded" / path.name).exists():
            shutil.copy(path, tmp_path / "sharded")
    assert not (tmp_path / "sharded/model.safetensors").exists()
    plain = search("red", instruction="Find it.")
    assert search("red", instruction="Find it.", model=tmp_path / "sharded") == plain


def test_an_instruction_that_fits_the_query_is_chosen(small, monkeypatch):
    given, real = [], searching.embed

    def embed(encoder, items, *, instruction=None, **kwargs):
        given.append(instruction)
        return real(encoder, items, instruction=instruction, **kwargs)

    monkeypatch.setattr(searching, "embed", embed)
    picture = small / "mbeir_images/plain_red.png"
    for query in ({"text": "red"}, {"image": picture}, {"image": picture, "text": "darker"}):
        search(**query)
    assert given == list(INSTRUCTIONS.values())
    search("red", instruction="Find it.")
    assert given[-1] == "Find it."


@pytest.mark.slow
def test_the_real_demo_reaches_what_it_is_held_to(tmp_path, monkeypatch):
    monkeypatch.setenv("UMARVEL_CACHE", str(tmp_path / "cache"))
    run_demo(tmp_path / "out")
    result = Result.load(tmp_path / "out/result.json")
    at_5 = {(task.dataset, task.task_id): task.rate(MODEL, "local") for task in result.tasks}
    assert at_5["scenes", 0] >= 0.7 and at_5["scenes", 3] >= 0.7
    assert result.mean("emojiseen", MODEL, "local") >= 0.35
    assert [one.verdict for one in result.types].count("better") >= 5
