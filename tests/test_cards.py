"""Model cards: every fact in them is the checkpoint's, and the Hub can read what stands above them."""

import json
import re
import shutil
from xml.etree import ElementTree

import pytest
import yaml
from huggingface_hub import ModelCard

from colours import TINY_RECIPE, write_benchmark, write_training_split
from umarvel_hf.cards import Trained, embedder_card, list_scores, reranker_card, told_by_card
from umarvel_hf.charts import stage_chart
from umarvel_hf.checkpoint import new_model
from umarvel_hf.data import MBeir
from umarvel_hf.evaluation.results import METRICS, MODEL, WRONG_MODALITY, PoolScore, Result, TaskResult
from umarvel_hf.modeling.modeling_umarvel import UMarvelModel
from umarvel_hf.trainer.card import finish_model
from umarvel_hf.trainer.recipe_reader import read_recipe


@pytest.fixture(scope="module")
def model(checkpoint):
    return UMarvelModel.from_pretrained(checkpoint)


@pytest.fixture
def result():
    found = {"local": [1.0, 0.0, 1.0], "union": [1.0, 0.0, 0.0]}
    scores = {pool: PoolScore(dict.fromkeys((*METRICS, WRONG_MODALITY), values)) for pool, values in found.items()}
    task = TaskResult("mscoco", 0, "hit@5", ["a", "b", "c"], {"local": 9, "union": 30}, {MODEL: scores}, {})
    return Result("m-beir", [task], [], {"split": "test"}, {}, {})


def test_a_card_says_what_the_model_is(checkpoint, model):
    card = (checkpoint / "README.md").read_text()
    assert "`umarvel new qwen2_vl`" in card and "| 32 | bidirectional | mean | native |" in card
    count = sum(parameter.numel() for parameter in model.parameters())
    assert f"| qwen2_vl | {count:,} |" in card
    assert "at most 4,096 tokens" in card and "It is not trained for retrieval yet" in card
    causal = UMarvelModel.from_pretrained(checkpoint, bidirectional=False, pooling="last")
    told = embedder_card(causal, base="a/b", made_by="hand", limits=["It knows Welsh only."])
    assert "| causal | last |" in told and "- It knows Welsh only.\n" in told and "# b as a U-MARVEL embedder" in told


def test_what_it_was_made_of_is_named_to_the_hub_where_it_is_there(model, tmp_path, monkeypatch):
    of_hub = ModelCard(embedder_card(model, base="Qwen/Qwen2-VL-2B-Instruct", made_by="x", license="apache-2.0"))
    assert (of_hub.data.base_model, of_hub.data.license) == ("Qwen/Qwen2-VL-2B-Instruct", "apache-2.0")
    assert "`apache-2.0`, as Qwen/Qwen2-VL-2B-Instruct has it." in of_hub.text
    pinned = ModelCard(embedder_card(model, base="Qwen/Qwen2-VL-2B-Instruct@main", made_by="x"))
    assert pinned.data.base_model == "Qwen/Qwen2-VL-2B-Instruct" and "# Qwen2-VL-2B-Instruct as a" in pinned.text
    (tmp_path / "models/base").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for folder in ("models/base", "./base", "../base"):
        assert "base_model" not in ModelCard(embedder_card(model, base=folder, made_by="x")).data.to_dict()
    of_folder = ModelCard(embedder_card(model, base="/home/someone/secret/base", made_by="x"))
    assert "base_model" not in of_folder.data.to_dict() and "license" not in of_folder.data.to_dict()
    assert "secret" not in of_folder.content and "That of base, whose card is not at hand" in of_folder.text


def test_scores_stand_in_the_card_and_as_the_hub_lists_them(model, result):
    trained = Trained("| stage |", "`pairs.csv`", "name: x", "f" * 64, result.table(), "scores.svg", result.listed())
    card = ModelCard(embedder_card(model, base="a/b", made_by="umarvel train x", name="x", trained=trained))
    (entry,) = yaml.safe_load(card.content.split("---\n")[1])["model-index"]
    assert entry["name"] == "x"
    found = {one["metrics"][0]["name"]: one["metrics"][0]["value"] for one in entry["results"]}
    listed = {metric["name"]: metric["value"] for one in entry["results"] for metric in one["metrics"]}
    assert found and listed == {"hit@5, local pool": 0.6667, "hit@5, union pool": 0.3333}
    assert {one["dataset"]["name"] for one in entry["results"]} == {"mscoco_task0"}
    assert [one.metric_value for one in card.data.eval_results] == [0.6667, 0.3333]
    for told in ("![The scores of the stages](scores.svg)", f"sha256 `{'f' * 64}`", "name: x", "`pairs.csv`", "mscoco"):
        assert told in card.text


def test_scores_of_a_later_evaluation_are_written_into_a_card(checkpoint, result, tmp_path):
    made = shutil.copytree(checkpoint, tmp_path / "mine")
    before = ModelCard.load(made / "README.md")
    for _ in range(2):  # once more replaces them
        list_scores(made, result.listed(), result.table())
        card = ModelCard.load(made / "README.md")
        assert [one.metric_value for one in card.data.eval_results] == [0.6667, 0.3333]
        assert card.data.model_name == "mine" and card.data.tags == before.data.tags
        assert card.text.count("## Scores\n") == 1 and card.text.count(result.table()) == 1
        for heading in ("## Use", "## Limits", "## Licence"):
            assert card.text.count(heading) == 1
    foreign = "---\ntags:\n- x\n---\r\n# Mine\r\n\r\n## Scores\r\nold\r\n### By task\r\nold\r\n## Use\r\nso\r\n"
    (made / "README.md").write_bytes(foreign.encode())
    list_scores(made, result.listed(), "new")
    text = ModelCard.load(made / "README.md").text
    assert "old" not in text and "## By task" not in text and text.count("## Scores") == 1
    assert "## Use\nso" in text and "## Limits" not in text
    (made / "README.md").write_text("---\ntags:\n- x\n---\n# Mine\n")
    list_scores(made, result.listed(), "new")
    assert ModelCard.load(made / "README.md").text.strip().startswith("# Mine\n\n## Scores\n")
    with pytest.raises(FileNotFoundError, match=r"has no README\.md; give the folder of a checkpoint"):
        list_scores(tmp_path, result.listed(), "")


def test_a_model_without_scores_says_so(model):
    trained = Trained("| stage |", "`pairs.csv`", "name: x", "f" * 64)
    card = ModelCard(embedder_card(model, base="a/b", made_by="x", trained=trained))
    assert "## Scores\n\nNot measured.\n" in card.text and "![" not in card.text
    assert "model-index" not in card.content


def test_use_is_shown_in_three_libraries(model):
    blocks = re.findall(r"```python\n(.+?)```", embedder_card(model, base="a/b", made_by="x"), re.DOTALL)
    assert [re.search(r"from (\w+) import", one.replace("from pathlib import Path\n\n", ""))[1] for one in blocks] == [
        "sentence_transformers",
        "transformers",
        "umarvel_hf",
    ]
    for block in blocks:
        compile(block, "card", "exec")


def test_the_licence_of_a_base_is_read_and_handed_on(bases, tmp_path):
    base = shutil.copytree(bases("qwen2_vl"), tmp_path / "base")
    assert told_by_card(base, "license") is None
    (base / "README.md").write_text("---\nlicense: mit\n---\n\n# Base\n")
    assert told_by_card(base, "license") == "mit"
    made = new_model(base, tmp_path / "made")
    assert told_by_card(made, "license") == "mit"
    (base / "README.md").write_text("---\nlicense: [odd]\n---\n")
    assert told_by_card(base, "license") is None
    (base / "README.md").write_text("---\nlicense: [odd\n---\n")
    assert told_by_card(base, "license") is None


def test_a_re_rankers_card_tells_what_it_does(tmp_path):
    card = ModelCard(reranker_card(base="Qwen/Qwen2-VL-2B-Instruct", license="apache-2.0"))
    assert card.data.pipeline_tag == "text-ranking" and card.data.base_model == "Qwen/Qwen2-VL-2B-Instruct"
    assert "P(Yes) against P(No)" in card.text and "CrossEncoder" in card.text


def test_the_chart_of_the_stages_is_a_picture_of_its_own():
    chart = stage_chart({"texts": {"local": 0.25, "union": 0.125}, "captions & more": {"local": 0.5, "union": 0.4}})
    root = ElementTree.fromstring(chart)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    bars = [one for one in root.iter("{http://www.w3.org/2000/svg}rect") if one.get("class") in ("local", "union")]
    assert [float(one.get("width")) for one in bars] == [50.0, 25.0, 100.0, 80.0]
    texts = [one.text for one in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"texts", "captions & more", "25.0 local", "40.0 union"} <= set(texts)


def test_a_run_leaves_a_card_with_scores_and_a_plot(checkpoint, tmp_path):
    benchmark = MBeir(write_training_split(write_benchmark(tmp_path / "data")))
    run = tmp_path / "run"
    run.mkdir()
    first = TINY_RECIPE["stages"][0]
    recipe = {**TINY_RECIPE, "stages": [first, {**first, "name": "second"}], "evaluation": {"test": True}}
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    noted = [
        {"stage": first["name"], "steps": 3, "last_loss": 1.5, "temperature": 0.05},
        {"stage": "second", "steps": 4, "validation": {"local_hit@5": 0.25, "union_hit@5": 0.125, "local_mrr": 0.1}},
    ]
    (run / "history.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in noted))
    finish_model(checkpoint, run / "model", read_recipe(run / "recipe.yaml"), benchmark)
    card = ModelCard.load(run / "model/README.md")
    assert f"| {first['name']} | contrastive | 3 | 1.5 | 0.05 |  |  |\n" in card.text
    assert "| second | contrastive | 4 |  |  | 25.0 | 12.5 |\n" in card.text
    assert "![The scores of the stages](scores.svg)" in card.text
    assert "25.0 local" in (run / "model/scores.svg").read_text()
    result = Result.load(run / "result.json")
    assert result.table() in card.text
    listed = {(one.dataset_name, one.metric_name): one.metric_value for one in card.data.eval_results}
    for task in result.tasks:
        assert listed[task.name, f"{task.metric}, union pool"] == round(task.rate(MODEL, "union"), 4)
    assert len(listed) == 2 * len(result.tasks)
