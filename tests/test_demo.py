"""The demo: end to end on a benchmark of coloured squares, and, where time allows, the real one."""

import shutil

import pytest

from colours import COLOURS, write_benchmark, write_training_split
from umarvel_hf.data import MBeir
from umarvel_hf.demo import QUERIES, run_demo, search_pictures
from umarvel_hf.encoding import load
from umarvel_hf.evaluation.results import MODEL, Result

NO_ANSWER = {"text": None, "image": None, "images": None, "model": None, "instruction": None, "k": 3}


@pytest.fixture
def small(tmp_path, monkeypatch, checkpoint):
    """The folder of a small benchmark, which the demo takes for the embedded one; a tiny random model is its model."""
    folder = write_training_split(write_benchmark(tmp_path / "small"))
    monkeypatch.setattr("umarvel_hf.demo.benchmark_dir", lambda: folder)
    monkeypatch.setattr("umarvel_hf.demo.model_dir", lambda: checkpoint)
    monkeypatch.setenv("UMARVEL_CACHE", str(tmp_path / "cache"))
    return folder


def test_the_demo_evaluates_searches_and_writes_its_report(small, tmp_path, capsys):
    run_demo(tmp_path / "out")
    printed = capsys.readouterr().out
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
    assert printed.endswith(f"report: {(tmp_path / 'out/report.html').resolve()}\n")


def test_the_demo_twice_prints_the_same(small, tmp_path, capsys):
    printed = []
    for _ in range(2):
        run_demo(tmp_path / "out")
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]


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
    lines = search_pictures(**NO_ANSWER | {"text": "red", "k": 99})
    assert len(lines) == len([one for one in pool.values() if one.image and not one.text]) == 2 * len(COLOURS)
    scores = [float(line.split()[0]) for line in lines]
    assert scores == sorted(scores, reverse=True)


def test_a_model_whose_weights_are_in_several_files_searches_the_embedded_pictures(small, checkpoint, tmp_path):
    load(str(checkpoint), device="cpu")[0].model.save_pretrained(tmp_path / "sharded", max_shard_size="50KB")
    for path in checkpoint.iterdir():
        if path.is_file() and path.name != "model.safetensors" and not (tmp_path / "sharded" / path.name).exists():
            shutil.copy(path, tmp_path / "sharded")
    assert not (tmp_path / "sharded/model.safetensors").exists()
    query = NO_ANSWER | {"text": "red"}
    assert search_pictures(**query | {"model": str(tmp_path / "sharded")}) == search_pictures(**query)


def test_an_instruction_that_fits_the_query_is_chosen(small, monkeypatch):
    given = []

    def retrieve(encoder, index, query, *, instruction, k):
        given.append(instruction)
        return []

    monkeypatch.setattr("umarvel_hf.demo.retrieve", retrieve)
    picture = small / "mbeir_images/plain_red.png"
    for query in ({"text": "red"}, {"image": picture}, {"image": picture, "text": "darker"}):
        assert search_pictures(**NO_ANSWER | query) == []
    assert len(set(given)) == 3
    search_pictures(**NO_ANSWER | {"text": "red", "instruction": "Find it."})
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
