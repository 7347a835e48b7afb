"""What tests share: tiny checkpoints made once a session, pictures and a film to feed them."""

import functools
import os
import tempfile

# Before the first import that reads them: no test asks a network, the code of test checkpoints goes to no one's cache.
HOME = tempfile.TemporaryDirectory(prefix="umarvel_hf_tests_")
os.environ |= {"HF_HOME": HOME.name, "HF_HUB_OFFLINE": "1"}

from umarvel_hf._torchvision import ensure_torchvision

ensure_torchvision()

import pytest
import torch

from backbones import FAMILIES
from foreign import foreign_environment, run_foreign  # noqa: F401 (fixtures)
from pictures import picture, write_film

torch.set_num_threads(1)  # the models are tiny; more threads only wait for each other


@pytest.fixture(scope="session")
def pictures():
    """Three pictures of three sizes that few processors need to resize."""
    return [picture(56, 56, seed=0), picture(84, 28, seed=1), picture(28, 84, seed=2)]


@pytest.fixture(scope="session")
def frames():
    """Four frames of one film."""
    return [picture(56, 56, seed=10 + at) for at in range(4)]


@pytest.fixture(scope="session")
def film(tmp_path_factory):
    """Four seconds of film (see pictures.py)."""
    return write_film(tmp_path_factory.mktemp("film") / "square.mp4")


@pytest.fixture(scope="session")
def bases(tmp_path_factory):
    """``bases(family)``: the folder of a tiny base, made on first use."""
    root = tmp_path_factory.mktemp("bases")
    return lambda family: root / family if (root / family).is_dir() else FAMILIES[family](root / family)


@pytest.fixture(scope="session")
def checkpoints(bases, tmp_path_factory):
    """``checkpoints(family)``: the folder of a fresh U-MARVEL checkpoint of a tiny base. Read it, never write to it."""
    from umarvel_hf.checkpoint import new_model

    root = tmp_path_factory.mktemp("checkpoints")
    return lambda family: root / family if (root / family).is_dir() else new_model(bases(family), root / family)


@pytest.fixture(scope="session")
def embedders(checkpoints):
    """``embedders(family)``: that checkpoint as ``SentenceTransformer``. Use it, never change it."""
    from umarvel_hf.encoding import load

    return functools.cache(lambda family: load(str(checkpoints(family))))


@pytest.fixture(scope="session")
def checkpoint(checkpoints):
    """The folder of one fresh checkpoint, for tests to which the backbone does not matter."""
    return checkpoints("qwen2_vl")


@pytest.fixture(scope="session")
def embedder(embedders):
    """The ``SentenceTransformer`` of that checkpoint."""
    return embedders("qwen2_vl")
