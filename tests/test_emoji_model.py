"""The shipped model: what is in the package, and the checkpoint that is put together from it."""

import os
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors import safe_open

from umarvel_hf.emoji import model_dir
from umarvel_hf.emoji.model import CODE
from umarvel_hf.encoding import load

SHIPPED = Path(str(files("umarvel_hf.emoji").joinpath("model")))

FOREIGN = """
import json, sys
from sentence_transformers import SentenceTransformer

model = SentenceTransformer(sys.argv[1], trust_remote_code=True, device="cpu")
print(json.dumps(model.encode(["a red heart", {"image": sys.argv[2]}]).tolist()))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("UMARVEL_CACHE", str(tmp_path / "cache"))
    return model_dir()


def test_it_is_small():
    weights = SHIPPED / "model.safetensors"
    assert weights.stat().st_size <= 9_000_000
    with safe_open(weights, framework="np") as tensors:
        sizes = [np.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys()]  # noqa: SIM118 (no dict)
    assert sum(sizes) <= 4_000_000


def test_its_code_is_that_of_the_package_and_stands_there_once(folder):
    modeling = Path(str(files("umarvel_hf.modeling")))
    assert {path.name for path in modeling.glob("*_umarvel.py")} == set(CODE)
    assert not list(SHIPPED.rglob("*.py"))
    for name in CODE:
        assert (folder / name).read_bytes() == (modeling / name).read_bytes()


def test_it_is_put_together_once(folder):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert model_dir() == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_package_without_its_data_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("umarvel_hf.emoji.model.files", lambda package: tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no model; install umarvel_hf anew"):
        model_dir()


def test_it_loads_where_our_package_is_not(folder, run_foreign, tmp_path, pictures):
    pictures[0].save(tmp_path / "picture.png")
    there = np.array(yaml.safe_load(run_foreign(FOREIGN, folder, tmp_path / "picture.png")))
    here = load(str(folder), device="cpu").encode(["a red heart", {"image": tmp_path / "picture.png"}])
    np.testing.assert_allclose(there, here, atol=1e-5)


def test_its_card_tells_the_recipe_that_ships():
    card = (SHIPPED / "README.md").read_text(encoding="utf-8")
    told = yaml.safe_load(card.split("```yaml\n")[1].split("```")[0])
    recipe = files("umarvel_hf.recipes").joinpath("emoji.yaml").read_text(encoding="utf-8")
    assert told == yaml.safe_load(recipe)


def test_no_file_in_it_names_a_machine():
    for path in SHIPPED.rglob("*"):
        if path.suffix in (".json", ".md", ".jinja"):
            assert os.sep + "tmp" + os.sep not in path.read_text(encoding="utf-8")
