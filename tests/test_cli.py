"""The command ``umarvel``: every verb as a user calls it, and one line for whatever a user gets wrong."""

import inspect
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
import yaml
from PIL import Image

from colours import COLOURS, TINY_RECIPE, write_benchmark, write_training_split
from foreign import CHECKOUT, WARNINGS_ARE_ERRORS
from hub_server import HubServer
from mbeir import write_mbeir
from umarvel_hf.approximate import build_approximate
from umarvel_hf.checkpoint import new_model
from umarvel_hf.cli import main, verbs
from umarvel_hf.cli.command import EXAMPLES, application
from umarvel_hf.conversion import convert
from umarvel_hf.demo import run_demo
from umarvel_hf.doctor import examine
from umarvel_hf.emoji import write_benchmark as write_benchmark_of_emoji
from umarvel_hf.encoding import encode, load
from umarvel_hf.evaluation.audit import audit
from umarvel_hf.evaluation.comparison import compare_results
from umarvel_hf.evaluation.results import Result
from umarvel_hf.evaluation.retrieval import SUITES
from umarvel_hf.evaluation.suites import ZERO_SHOT
from umarvel_hf.exporting import export
from umarvel_hf.hub import push
from umarvel_hf.measuring import evaluate, report
from umarvel_hf.mining import mine, mine_benchmark
from umarvel_hf.reranker_checkpoint import new_reranker
from umarvel_hf.searching import encode_collection, rerank, search
from umarvel_hf.trainer.run import train
from zero_shot import WRITERS

VERBS = (
    *("demo", "data", "new", "convert", "export", "push", "doctor", "encode", "index", "search", "rerank", "train"),
    *("mine", "evaluate", "compare", "audit", "report"),
)
REFERENCE = CHECKOUT / "tests/golden/qwen2_vl_published/checkpoint"


@pytest.fixture
def umarvel(capsys, monkeypatch, tmp_path):
    """``umarvel(*arguments) -> stdout`` in an empty folder with an empty cache; asserts that it ends well."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("UMARVEL_CACHE", str(tmp_path / "cache"))

    def run(*arguments):
        capsys.readouterr()
        assert main([str(one) for one in arguments]) == 0
        return capsys.readouterr().out

    return run


@pytest.fixture
def refused(capsys, monkeypatch, tmp_path):
    """``refused(*arguments) -> message``: asserts exit status 2, nothing on stdout and one line that says why."""
    monkeypatch.setenv("UMARVEL_CACHE", str(tmp_path / "cache"))

    def run(*arguments):
        capsys.readouterr()
        assert main([str(one) for one in arguments]) == 2
        out, err = capsys.readouterr()
        assert out == "" and "Traceback" not in err
        assert err.endswith("\n")
        message = err.splitlines()[-1]
        assert message.startswith("umarvel: ")
        return message.removeprefix("umarvel: ")

    return run


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    """A folder of six pictures, one of them deeper."""
    folder = tmp_path_factory.mktemp("squares")
    (folder / "more").mkdir()
    for colour, rgb in COLOURS.items():
        Image.new("RGB", (56, 56), rgb).save(folder / ("more" if colour == "cyan" else "") / f"{colour}.png")
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    return write_training_split(write_benchmark(tmp_path_factory.mktemp("benchmark")), repeats=2)


def test_the_help_of_every_verb_loads_nothing_heavy_and_gives_an_example():
    code = f"""
import sys
from umarvel_hf.cli import main
for verb in {VERBS}:
    assert main([verb, "--help"]) == 0
print("loaded:", *{{name.partition(".")[0] for name in sys.modules}})
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    told, _, loaded = done.stdout.partition("loaded:")
    assert {"torch", "transformers", "numpy", "PIL", "faiss", "yaml"}.isdisjoint(loaded.split())
    assert re.findall(r"^ *Example: umarvel (\w+)", told, re.MULTILINE) == list(VERBS)


def test_the_help_of_evaluate_names_every_suite():
    options = {one.name: one for one in typer.main.get_command(application).commands["evaluate"].params}
    assert {*SUITES, *ZERO_SHOT} <= set(re.findall(r"[\w-]+", options["suite"].help))


def test_the_version_is_that_of_the_package(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("umarvel_hf ")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "Missing command. See `umarvel --help`."),
        (["serach"], "No such command 'serach'. Did you mean 'search'?. See `umarvel --help`."),
        (["new", "base"], "Missing argument 'out'. See `umarvel new --help`."),
        (
            ["search", "-k", "many"],
            "Invalid value for '-k': Input should be a valid integer, unable to parse string as an integer. See `",
        ),
        (["demo", "--fast"], "No such option: --fast. See `umarvel demo --help`."),
        (["evaluate", "m", "--pools", "all"], "'all' is no pool; give local, union or local,union. See `umarvel"),
        (["evaluate", "m", "--pixels", "x"], "'x' is no list of whole numbers; write it like 4096,8192. See"),
        (["evaluate", "m", "--memory", "much"], "'much' is no amount of memory; write it like 8GB or 512MiB. See"),
        (["evaluate", "m", "--tasks", ","], "it is empty; give names with commas between them. See"),
        (
            ["search", "a", "--device", "cpu,cpu"],
            "Invalid value for '--device': 2 devices are given, cpu,cpu; name one.",
        ),
        (["mine", "m", "--dtype", "int8"], "Invalid value for '--dtype': 'int8' is not one of"),
    ],
)
def test_a_command_that_cannot_be_read_gets_one_line(arguments, told, capsys):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("umarvel: ") and told in err and err.count("\n") == 1


def test_data_writes_the_benchmark_and_says_where(umarvel, tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr("umarvel_hf.emoji.write_benchmark", lambda out: written.append(out) or out)
    assert umarvel("data", tmp_path / "emoji") == f"{tmp_path / 'emoji'}\n"
    assert written == [tmp_path / "emoji"]


def test_new_makes_a_checkpoint(umarvel, bases, tmp_path):
    assert umarvel("new", bases("qwen2_vl"), tmp_path / "fresh") == f"{tmp_path / 'fresh'}\n"
    assert encode(load(str(tmp_path / "fresh"), device="cpu"), ["a dog"]).shape == (1, 32)


def test_new_takes_a_base_from_the_hub(bases, checkpoint, tmp_path):
    code = "import sys; from umarvel_hf.cli import main; sys.exit(main(['new', 'tester/base', sys.argv[1]]))"
    command = [sys.executable, *WARNINGS_ARE_ERRORS, "-c", code, str(tmp_path / "fresh")]
    with HubServer() as server:
        server.fill("tester/base", bases("qwen2_vl"))
        environment = os.environ | server.environment(tmp_path / "home")
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in ("model.safetensors", "tokenizer.json", "chat_template.jinja"):
        assert (tmp_path / "fresh" / name).read_bytes() == (checkpoint / name).read_bytes()


def test_convert_reports_what_it_found_and_obeys_its_options(umarvel, tmp_path):
    printed = umarvel("convert", REFERENCE, tmp_path / "plain")
    assert printed.splitlines()[-1] == str(tmp_path / "plain")
    assert f"source: {REFERENCE}\n" in printed and "generation prompt: True\n" in printed
    options = ("--no-generation-prompt", "--instruction-rows", "mean")
    printed = umarvel("convert", REFERENCE, tmp_path / "other", *options)
    assert "generation prompt: False\n" in printed and "instruction rows: mean\n" in printed
    templates = [(tmp_path / name / "chat_template.jinja").read_text() for name in ("plain", "other")]
    assert templates[0] != templates[1]


def test_train_follows_a_recipe_and_goes_on(umarvel, benchmark, tmp_path):
    (tmp_path / "quick.yaml").write_text(yaml.safe_dump(TINY_RECIPE))
    command = ("train", tmp_path / "quick.yaml", "--data", benchmark, "--max-steps", 2)
    assert umarvel(*command).splitlines()[-1] == "runs/quick-2-steps/model"
    assert encode(load("runs/quick-2-steps/model", device="cpu"), ["red."]).shape == (1, 32)
    assert umarvel(*command) == "runs/quick-2-steps/model\n"
    assert umarvel(*command, "--out", tmp_path / "elsewhere").splitlines()[-1] == str(tmp_path / "elsewhere/model")


def test_search_finds_a_picture_in_a_folder_of_ones_own(umarvel, checkpoint, squares):
    place = ("--images", squares, "--model", checkpoint)
    by_picture = umarvel("search", "--image", squares / "blue.png", "--instruction", "", *place, "-k", 3).splitlines()
    assert len(by_picture) == 3
    assert by_picture[0] == f"1.000  blue.png  {squares / 'blue.png'}"
    by_text = umarvel("search", "a blue square", *place, "-k", 99).splitlines()
    assert len(by_text) == 6 and any("more/cyan.png" in line for line in by_text)
    both = umarvel("search", "a blue square", "--image", squares / "red.png", *place, "-k", 99).splitlines()
    steered = umarvel("search", "a blue square", *place, "-k", 99, "--instruction", "Find another.").splitlines()
    assert both != by_text != steered


def test_search_looks_through_the_embedded_pictures_and_keeps_their_index(
    umarvel, checkpoint, benchmark, monkeypatch, tmp_path
):
    monkeypatch.setattr("umarvel_hf.searching.benchmark_dir", lambda: benchmark)
    monkeypatch.setattr("umarvel_hf.searching.model_dir", lambda: checkpoint)
    first = umarvel("search", "a red heart")
    assert len(first.splitlines()) == 5
    assert all(line.endswith(".png") and str(benchmark) in line for line in first.splitlines())
    monkeypatch.setattr("umarvel_hf.evaluation.pools.embed", lambda *_, **__: pytest.fail("encoded again"))
    assert umarvel("search", "a red heart") == first
    assert len(list((tmp_path / "cache").iterdir())) == 1


@pytest.fixture(scope="module")
def evaluated(checkpoint, benchmark, tmp_path_factory):
    """The folder that `umarvel evaluate` fills from the tiny benchmark."""
    out = tmp_path_factory.mktemp("evaluated") / "run"
    assert (
        main(["evaluate", str(checkpoint), "--data", str(benchmark), "--out", str(out), "--batch-tokens", "200"]) == 0
    )
    return out


def test_evaluate_leaves_a_result_a_table_runs_and_a_page(evaluated, benchmark):
    there = {path.relative_to(evaluated).as_posix() for path in evaluated.rglob("*") if path.is_file()}
    expected = {"result.json", "table.txt", "report.html", "runs/qrels/dark_task4.txt", "runs/union/plain_task0.txt"}
    assert expected <= there and not any("partial" in name for name in there)
    result = Result.load(evaluated)
    command = f"umarvel evaluate {result.settings['model']} --data {benchmark} --out {evaluated} --batch-tokens 200"
    assert result.settings["command"] == command
    assert result.settings["data"] == str(benchmark)
    assert (evaluated / "table.txt").read_text() == result.table() + "\n"
    assert result.baselines == ["random", "BM25", "pixel kNN"]


def test_evaluate_again_encodes_nothing_and_gives_the_same(umarvel, evaluated, checkpoint, benchmark, monkeypatch):
    monkeypatch.setattr("umarvel_hf.evaluation.pools.embed", lambda *_, **__: pytest.fail("encoded again"))
    first = Result.load(evaluated)
    told = json.loads(umarvel("evaluate", checkpoint, "--data", benchmark, "--out", evaluated, "--json"))
    assert Result.load(evaluated).tasks == first.tasks
    assert told["tasks"][0]["qids"] == first.tasks[0].qids


def test_evaluate_obeys_its_options(umarvel, checkpoint, benchmark, tmp_path):
    command = ("evaluate", checkpoint, "--data", benchmark, "--out", tmp_path / "out")
    options = ("--tasks", "plain_task3", "--pools", "local", "--no-baselines", "--no-gold-modality", "--memory", "1GiB")
    printed = umarvel(*command, *options, "--instructions", "seeded", "--seed", 4)
    assert printed.splitlines()[-1] == f"report: {tmp_path / 'out/report.html'}"
    result = Result.load(tmp_path / "out")
    assert [task.name for task in result.tasks] == ["plain_task3"]
    assert (result.pools, result.systems) == (["local"], ["model"])
    assert result.settings["instructions"] == "seeded, 4"
    assert result.settings["candidate modality"] == "of the task"


def test_mine_names_a_row_whose_task_is_unknown(refused, checkpoint, tmp_path):
    root = write_training_split(write_benchmark(tmp_path / "data"))
    path = root / "query/union_train/mbeir_union_up_train.jsonl"
    path.write_text(path.read_text().replace('"task_id": 7', '"task_id": 99'))
    told = refused("mine", checkpoint, "--data", root, "--out", tmp_path / "out", "--device", "cpu")
    assert told.startswith(f"{path}:13: '2:0' has task_id 99, not a number from 0 to 8")


class Favours:
    """A re-ranker that likes what is called by the colour that was asked for."""

    def predict(self, inputs, **_):
        return np.array([0.9 if str(query).lower().split()[-1][:3] in str(found) else 0.1 for query, found in inputs])


def test_evaluate_reranks_with_a_weight_from_another_split(
    umarvel, refused, checkpoint, benchmark, monkeypatch, tmp_path
):
    data = shutil.copytree(benchmark, tmp_path / "data")
    for kind in ("query", "qrels"):
        for path in (data / kind / "test").iterdir():
            text = path.read_text().replace('"qid": "', '"qid": "1:9') if kind == "query" else f"{path.read_text()}"
            text = text if kind == "query" else re.sub(r"^\d+:", "1:91:", text, flags=re.MULTILINE)
            target = data / kind / "val" / path.name.replace("_test", "_val")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
    monkeypatch.setattr("umarvel_hf.measuring.load_reranker", lambda model: Favours())
    command = ("evaluate", checkpoint, "--data", data, "--tasks", "plain_task0", "--out", tmp_path / "out")
    umarvel(*command, "--rerank", "my-reranker", "--top", 7)
    result = Result.load(tmp_path / "out")
    assert "re-ranked" in result.systems
    assert (result.fusion["split"], result.fusion["top"], result.fusion["reranker"]) == ("val", 7, "my-reranker")
    again = umarvel(*command, "--rerank", "my-reranker", "--fusion", tmp_path / "out/fusion.json", "--json")
    assert json.loads(again)["fusion"] == result.fusion
    told = refused(*command, "--rerank", "my-reranker", "--fusion", tmp_path / "out/fusion.json", "--split", "val")
    assert "was fitted on split 'val', which is the one to evaluate" in told
    (tmp_path / "broken.json").write_text('{"weight": 1}')
    assert "holds no fusion weight" in refused(*command, "--rerank", "r", "--fusion", tmp_path / "broken.json")


def test_evaluate_leaves_the_runs_of_trainings_alone(umarvel, checkpoint, benchmark, tmp_path):
    shutil.copytree(checkpoint, "runs/mine/model")
    umarvel(
        "evaluate", "runs/mine/model", "--data", benchmark, "--tasks", "plain_task0", "--out", ".", "--no-baselines"
    )
    assert Path("runs/mine/model/model.safetensors").is_file() and Path("runs/local/plain_task0.txt").is_file()


def test_every_verb_starts_in_a_process_of_its_own(tmp_path):
    """Whatever it imports first: where torchvision's operators do not load, that must be what helps it."""
    code = "import importlib, sys; importlib.import_module(sys.argv[1])"
    for module in ("measuring", "searching", "doctor"):
        command = [sys.executable, *WARNINGS_ARE_ERRORS, "-c", code, f"umarvel_hf.{module}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{module}\n{done.stderr}"


def test_evaluate_measures_a_zero_shot_set(umarvel, refused, checkpoint, tmp_path):
    WRITERS["circo"](tmp_path)
    WRITERS["genecis"](tmp_path)
    command = ("evaluate", checkpoint, "--data", tmp_path, "--suite")
    printed = umarvel(*command, "circo", "--out", tmp_path / "circo-val")
    assert printed.splitlines()[-1] == f"report: {tmp_path / 'circo-val/report.html'}"
    result = Result.load(tmp_path / "circo-val")
    assert (result.suite, result.settings["split"], result.settings["model"]) == ("circo", "val", str(checkpoint))
    assert (tmp_path / "circo-val/table.txt").read_text() == result.table() + "\n"
    told = json.loads(umarvel(*command, "circo", "--split", "test", "--out", tmp_path / "circo-test", "--json"))
    submission = json.loads(Path(told["submission"]).read_text())
    assert [sorted(found) for found in submission.values()] == [[1, 2, 3, 4, 5, 6]] * 3
    umarvel(*command, "genecis", "--tasks", "genecis_focus_object", "--out", tmp_path / "genecis-val")
    assert Result.load(tmp_path / "genecis-val").missing[0] == "genecis_change_object"
    page = umarvel("report", tmp_path / "circo-val", tmp_path / "genecis-val", "--out", tmp_path / "page.html").strip()
    assert "GeneCIS focus_object" in Path(page).read_text() and "▶ " in Path(page).read_text()
    assert umarvel("report", tmp_path / "circo-val").strip() == str(tmp_path / "circo-val/report.html")
    assert umarvel("report", tmp_path / "circo-val", tmp_path / "genecis-val").strip() == "umarvel-results.html"
    assert "genecis_focus_object" in umarvel("compare", tmp_path / "genecis-val", tmp_path / "genecis-val")

    copy = shutil.copytree(checkpoint, tmp_path / "copy")
    umarvel("report", tmp_path / "circo-val", tmp_path / "genecis-val", "--card", copy)
    card = (copy / "README.md").read_text()
    assert "circo " in card and "genecis_focus_object" in card and "capped_map@5, local pool" in card

    out = (*command, "circo", "--out", tmp_path / "out")
    for options in (["--rerank", "r"], ["--frontier"], ["--baselines"], ["--pools", "local"]):
        assert "leave those options out" in refused(*out, *options)
    assert "needs --data, a folder that holds the files" in refused("evaluate", checkpoint, "--suite", "circo")
    assert "split is 'train'; circo has val and test" in refused(*out, "--split", "train")
    assert "flickr_text.json does not exist" in refused(*command, "flickr30k", "--out", tmp_path / "out")
    assert "leave them out" in refused("report", tmp_path / "circo-val", "--data", tmp_path)
    assert "is given twice" in refused("report", tmp_path / "circo-val", tmp_path / "circo-val")
    (tmp_path / "X.json").write_text(
        json.dumps({"task_name": "X", "mteb_version": "2", "scores": {"test": [{"main_score": 1}]}})
    )
    assert "evaluations of one model" in refused("report", tmp_path / "X.json", "--card", copy)
    other = tmp_path / "other.json"
    other.write_text((tmp_path / "circo-val/result.json").read_text().replace(str(checkpoint), "another"))
    assert "evaluations of one model" in refused("report", tmp_path / "circo-val", other, "--card", copy)
    assert (copy / "README.md").read_text() == card


def test_evaluate_scores_a_run_file(umarvel, refused, evaluated, tmp_path):
    run, qrels = evaluated / "runs/local/plain_task0.txt", evaluated / "runs/qrels/plain_task0.txt"
    printed = umarvel("evaluate", "--run", run, "--qrels", qrels, "--out", tmp_path / "scored")
    assert printed == Result.load(tmp_path / "scored").table() + "\n"
    task = next(task for task in Result.load(evaluated).tasks if task.name == "plain_task0")
    assert Result.load(tmp_path / "scored").tasks[0].rate("model", "local") == task.rate("model", "local")
    umarvel(
        "evaluate", "--run", evaluated / "runs/union/plain_task0.txt", "--qrels", qrels, "--out", tmp_path / "other"
    )
    assert "plain_task0" in umarvel("compare", tmp_path / "scored", tmp_path / "other")
    told = refused("evaluate", "--run", run, "--qrels", qrels, "--out", evaluated)
    assert "holds the evaluation of a model; name another --out" in told
    assert "give a model, or --run and --qrels" in refused("evaluate", "--run", run)
    assert "give a model, or --run and --qrels" in refused("evaluate")
    (tmp_path / "cut.txt").write_text(run.read_text()[:-9])
    assert "cut.txt:" in refused("evaluate", "--run", tmp_path / "cut.txt", "--qrels", qrels)


def test_evaluate_refuses_what_makes_no_sense(refused, capsys, checkpoint, benchmark, tmp_path):
    command = ("evaluate", checkpoint, "--out", tmp_path / "out")
    assert "--suite m-beir needs --data" in refused(*command, "--suite", "m-beir")
    assert "choose one of m-beir, emoji" in refused(*command, "--suite", "coco", "--data", benchmark)
    assert "is not a folder" in refused(*command, "--data", tmp_path / "nothing")
    assert "no test queries for plain_task9; it has" in refused(*command, "--data", benchmark, "--tasks", "plain_task9")
    assert "give --rerank, too" in refused(*command, "--fusion", tmp_path / "fusion.json")
    assert "give --rerank, too" in refused(*command, "--top", 0)
    assert "leave --top out" in refused(*command, "--rerank", "r", "--top", 9, "--fusion", tmp_path / "fusion.json")
    assert "give --frontier, too" in refused(*command, "--pixels", 4096)
    assert "--frontier measures both pools" in refused(*command, "--frontier", "--pools", "local")
    assert "--frontier times one device, and 2 are given" in refused(*command, "--frontier", "--device", "cpu,cpu")
    assert "memory is" in refused(*command, "--data", benchmark, "--memory", "1KB")


@pytest.mark.parametrize("verb", ["mine", "evaluate"])
@pytest.mark.parametrize("device", ["nonsense", "cuda:999", "meta"])
def test_a_device_that_is_not_there_is_refused(verb, device, capsys):
    assert main([verb, "model", "--device", device]) == 2
    assert f"Invalid value for '--device': '{device}' cannot be used here (" in capsys.readouterr().err


def test_a_model_is_measured_on_two_devices_as_on_one(umarvel, checkpoint, benchmark, evaluated, tmp_path):
    out = tmp_path / "two"
    umarvel("evaluate", checkpoint, "--data", benchmark, "--out", out, "--device", "cpu,cpu", "--dtype", "float32")
    one, two = (Result.load(folder) for folder in (evaluated, out))
    assert [task.top for task in two.tasks] == [task.top for task in one.tasks]


def test_compare_says_which_is_better_and_draws_it(umarvel, refused, evaluated, tmp_path):
    other = shutil.copytree(evaluated, tmp_path / "other", ignore=shutil.ignore_patterns("vectors"))
    printed = umarvel("compare", evaluated, other, "--pool", "union", "--plot", tmp_path / "plot.svg")
    assert "no difference" in printed and "other" in printed.splitlines()[0]
    assert (tmp_path / "plot.svg").read_text().startswith("<svg ")
    told = json.loads(umarvel("compare", evaluated / "result.json", other / "result.json", "--metric", "mrr", "--json"))
    assert [one["p_value"] for one in told["comparisons"]] == [1.0] * 3
    assert told["comparisons"][0]["metric"] == "mrr"
    assert "'hit@3' was not measured" in refused("compare", evaluated, other, "--metric", "hit@3")
    assert "No such file" in refused("compare", evaluated, tmp_path / "nothing")


def test_audit_tells_by_its_status_whether_the_data_are_sound(umarvel, capsys, tmp_path):
    data = tmp_path / "data"
    write_mbeir(data)
    assert json.loads(umarvel("audit", data, "--json"))["findings"] == []
    (data / "mbeir_images/did_4_7.png").write_bytes(b"no picture")
    assert main(["audit", str(data)]) == 1
    assert "did_4_7.png" in capsys.readouterr().out
    assert main(["audit", str(data), "--no-images"]) == 0
    assert main(["audit", str(tmp_path / "nothing")]) == 2


def test_report_writes_the_page_again_also_without_the_data(umarvel, refused, evaluated, tmp_path):
    copy = shutil.copytree(evaluated, tmp_path / "copy", ignore=shutil.ignore_patterns("vectors", "report.html"))
    assert umarvel("report", copy) == f"{copy / 'report.html'}\n"
    assert (copy / "report.html").read_text() == (evaluated / "report.html").read_text()
    saved = (copy / "result.json").read_text().replace(json.dumps(Result.load(copy).settings["data"]), '"/gone"')
    (copy / "result.json").write_text(saved)
    assert umarvel("report", copy / "result.json", "--out", tmp_path / "bare.html") == f"{tmp_path / 'bare.html'}\n"
    assert "data:image" not in (tmp_path / "bare.html").read_text()
    assert "No such file" in refused("report", tmp_path / "nothing")


def test_a_search_that_makes_no_sense_is_refused(refused, checkpoint, squares, tmp_path):
    place = ("--images", squares, "--model", checkpoint)
    for nothing in ((), ("",)):
        told = "there is nothing to search for; give a text, a picture (--image), or both."
        assert refused("search", *nothing, *place) == told
    assert "the file 'nope.png' does not exist" in refused("search", "--image", "nope.png", *place)
    assert "k is 0; it must be at least 1" in refused("search", "a", *place, "-k", 0)
    assert "notes.txt' is not a picture" in refused("search", "--image", squares / "notes.txt", *place)


def test_a_folder_without_readable_pictures_is_refused(refused, checkpoint, tmp_path):
    search = ("search", "a", "--model", checkpoint, "--images")
    assert "nothing' does not exist; give a folder of pictures or a table" in refused(*search, tmp_path / "nothing")
    (tmp_path / "pictures").mkdir()
    assert "holds no picture (.png" in refused(*search, tmp_path / "pictures")
    (tmp_path / "pictures/cut.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert "cut.png' is not a picture that Pillow can read" in refused(*search, tmp_path / "pictures")


def test_a_model_that_is_not_there_or_not_right_is_refused(refused, bases, checkpoint, squares, tmp_path):
    search = ("search", "a", "--images", squares, "--model")
    assert "nothing' does not exist; give a checkpoint's folder or its Hub id" in refused(*search, tmp_path / "nothing")
    assert "nobody/nothing is no folder and not in the cache" in refused(*search, "nobody/nothing")
    assert "'no such/model!' is neither a folder nor a Hub id" in refused(*search, "no such/model!")
    told = refused(*search, bases("qwen2_vl"))
    assert "is no U-MARVEL checkpoint (its model type is 'qwen2_vl'). Make one of it: `umarvel new " in told
    weights = shutil.copytree(checkpoint, tmp_path / "cut") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "a weights file is damaged; copy it again" in refused(*search, tmp_path / "cut")


def test_folders_that_hold_something_are_not_written_to(refused, bases, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    wanted = "exists and is not an empty folder; name another one or remove it."
    assert wanted in refused("new", bases("qwen2_vl"), tmp_path / "full")
    assert wanted in refused("convert", REFERENCE, tmp_path / "full")
    assert "full is not empty" in refused("data", tmp_path / "full")
    assert (tmp_path / "full/notes.txt").read_text() == "mine"


def test_sources_that_are_not_there_or_not_right_are_refused(refused, checkpoint, tmp_path):
    out = tmp_path / "out"
    assert "nothing' does not exist" in refused("new", tmp_path / "nothing", out)
    assert "nothing' does not exist" in refused("convert", tmp_path / "nothing", out)
    for verb in ("new", "convert"):
        assert "is a U-MARVEL checkpoint already; load it as it is." in refused(verb, checkpoint, out)
    told = "emojis is neither a file nor a shipped recipe; shipped are: emoji, emoji-full, "
    assert refused("train", "emojis").startswith(told)
    assert not (tmp_path / "cache").exists()  # the benchmark was not written for it
    assert "nothing is not a folder" in refused("train", "emoji", "--data", tmp_path / "nothing", "--out", out)
    (tmp_path / "wrong.yaml").write_text("name: tiny\ncolour: red\n")
    assert "wrong.yaml: unknown keys ['colour'], missing" in refused("train", tmp_path / "wrong.yaml")
    assert not out.exists()


def test_a_mistake_of_ours_keeps_its_traceback(monkeypatch, tmp_path):
    monkeypatch.setattr("umarvel_hf.emoji.write_benchmark", lambda out: {}["missing"])
    with pytest.raises(KeyError):
        main(["data", str(tmp_path / "out")])


def test_stopping_ends_quietly(monkeypatch, tmp_path, capsys):
    def stopped(out):
        raise KeyboardInterrupt

    monkeypatch.setattr("umarvel_hf.emoji.write_benchmark", stopped)
    assert main(["data", str(tmp_path / "out")]) == 130
    assert capsys.readouterr().err == "umarvel: stopped\n"


PAGES = [CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(CHECKOUT).as_posix())
def test_the_commands_of_a_page_can_be_read(page, monkeypatch):
    monkeypatch.setattr("torch.zeros", lambda *_, device: torch.ones(1))  # devices that are not here
    verbs, text = typer.main.get_command(application).commands, page.read_text()
    blocks = "\n".join(re.findall(r"```(?:bash|shell|sh|console)\n(.+?)```", text, re.DOTALL)).replace("\\\n", " ")
    for command in re.findall(r"^(?:.* && )?umarvel (.+)$", blocks, re.MULTILINE):
        verb, *options = shlex.split(re.split(r" [|>] ", command)[0], comments=True)
        assert verb in verbs or verb.startswith("--"), command
        if verb in verbs:
            verbs[verb].make_context(verb, options)
    for script in re.findall(r"python ((?:examples|benchmarks)/\S+)", text):
        assert (CHECKOUT / script).is_file(), script


HEAVY = ("demo", "data", "search", "train")  # examples that take the whole embedded benchmark
AFTER = ("compare", "audit", "report")  # what needs two evaluations


@pytest.fixture
def desk(bases, squares, tmp_path):
    """``desk(verbs)``: runs the examples of their help in one folder where what they name is, in one process.

    The status of each must be 0, and what it prints JSON.
    """
    write_mbeir(tmp_path / "M-BEIR")
    write_training_split(write_benchmark(tmp_path / "my-data"))
    shutil.copytree(squares, tmp_path / "home/pictures")
    new_reranker(bases("qwen2_vl"), tmp_path / "my-reranker")
    code = """
import json, os, shlex, sys
from umarvel_hf.cli import main
for example in json.loads(sys.argv[1]):
    arguments = [os.path.expanduser(one) for one in shlex.split(example)[1:]]
    print(main([*arguments, "--json"]), flush=True)
"""
    with HubServer() as server:
        server.fill("Qwen/Qwen2-VL-2B-Instruct", bases("qwen2_vl"))
        server.fill("TencentBAC/U-MARVEL-Qwen2VL-7B-Instruct", CHECKOUT / "tests/golden/qwen2_vl_published/checkpoint")
        settings = {"HOME": str(tmp_path / "home"), "UMARVEL_CACHE": str(tmp_path / "cache")}
        environment = os.environ | server.environment(tmp_path / "hub") | settings

        def run(verbs):
            examples = [EXAMPLES[verb] for verb in verbs]
            command = [sys.executable, *WARNINGS_ARE_ERRORS, "-c", code, json.dumps(examples)]
            done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            lines = done.stdout.splitlines()
            for example, told, status in zip(examples, lines[::2], lines[1::2], strict=True):
                assert status == "0", f"{example}\n{done.stderr}"
                assert isinstance(json.loads(told), dict)
            assert "Traceback" not in done.stderr and "\r" not in done.stderr
            return tmp_path

        yield run


def test_the_examples_of_the_help_run(desk):
    there = desk([verb for verb in VERBS if verb not in HEAVY + AFTER])
    for made in ("my-embedder", "u-marvel-7b", "my-backbone"):
        assert (there / made / "model.safetensors").is_file()
    shutil.copytree(there / "run-a", there / "run-b")
    desk(AFTER)
    assert (there / "difference.svg").is_file() and "(run-b)" in (there / "results.html").read_text()


@pytest.mark.slow
def test_the_examples_that_take_the_embedded_benchmark_run(desk):
    there = desk(HEAVY)
    assert (there / "umarvel-demo/report.html").is_file()
    assert (there / "emoji-benchmark/query").is_dir()
    assert (there / "runs/emoji-full-1-steps/model/model.safetensors").is_file()


def parameters_of(function):
    return list(inspect.signature(function).parameters)


def test_every_option_is_a_parameter_of_what_the_verb_calls():
    """Of the functions named here; what a verb does beside its call (reading a benchmark, showing) is listed."""
    calls = {
        "demo": (run_demo, ()),
        "data": (write_benchmark_of_emoji, ()),
        "new": (new_model, ("reranker",)),
        "convert": (convert, ()),
        "export": (export, ()),
        "push": (push, ()),
        "doctor": (examine, ()),
        "encode": (encode_collection, ()),
        "index": (build_approximate, ()),
        "search": (search, ()),
        "rerank": (rerank, ()),
        "train": (train, ("data", "dry_run")),
        "mine": (mine_benchmark, ("model", "table", "data", "show", "qids", "device", "dtype", *parameters_of(mine))),
        "evaluate": (evaluate, ()),
        "compare": (compare_results, ("plot",)),
        "audit": (audit, ()),
        "report": (report, ()),
    }
    assert tuple(calls) == VERBS

    modules = [getattr(verbs, name) for name in ("starting", "checkpoints", "searching", "training", "measuring")]
    for verb, (function, more) in calls.items():
        (own,) = [getattr(module, verb) for module in modules if hasattr(module, verb)]
        known = {*parameters_of(function), *more}
        renamed = {"data": "root"} if verb == "audit" else {}
        asked = {renamed.get(name, name) for name in parameters_of(own)}
        assert asked <= known, (verb, asked - known)


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("umarvel se", ["search"]),
        ("umarvel search --in", ["--index", "--instruction"]),
        ("umarvel convert a b --family l", ["lamra"]),
    ],
)
def test_a_shell_completes_verbs_options_and_choices(words, offered):
    code = "import sys; from umarvel_hf.cli import main; sys.exit(main([]))"
    asked = {"_UMARVEL_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | asked, capture_output=True, text=True)
    assert done.stdout.split() == offered
