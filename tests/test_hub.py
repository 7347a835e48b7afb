"""Models, processors and embedders go to the Hub and come back where our package is not installed."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from foreign import WARNINGS_ARE_ERRORS
from hub_server import HubServer

PUSH = """
import sys

from umarvel_hf._torchvision import ensure_torchvision

ensure_torchvision()
from transformers import AutoProcessor

from umarvel_hf.encoding import load
from umarvel_hf.modeling.modeling_umarvel import UMarvelModel

checkpoint = sys.argv[1]
UMarvelModel.from_pretrained(checkpoint).push_to_hub("tester/model")
AutoProcessor.from_pretrained(checkpoint, trust_remote_code=True).push_to_hub("tester/model")
load(checkpoint).push_to_hub("tester/embedder")
"""

LOAD = """
import json, sys
import torch
from PIL import Image
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoProcessor

image, found = Image.new("RGB", (56, 56), (200, 30, 30)), {}
item = {"image": image, "text": "a dog"}
chat = [
    {"role": "system", "content": [{"type": "text", "text": "Find it."}]},
    {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "a dog"}]},
]
for repository in ("tester/model", "tester/embedder"):
    embedder = SentenceTransformer(repository, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(repository, trust_remote_code=True)
    model = AutoModel.from_pretrained(repository, trust_remote_code=True)
    inputs = processor.apply_chat_template(chat, tokenize=True, return_dict=True, return_tensors="pt")
    with torch.no_grad():
        by_model = model(**inputs).pooler_output[0].tolist()
    found[repository] = [embedder.encode([item], prompt="Find it.")[0].tolist(), by_model]
try:
    AutoModel.from_pretrained("tester/nothing", trust_remote_code=True)
except OSError as error:
    found["missing"] = str(error)[:200]
json.dump(found, sys.stdout)
"""


@pytest.fixture
def hub():
    with HubServer() as server:
        yield server


def test_what_is_pushed_comes_back_the_same_without_our_package(hub, checkpoint, embedder, run_foreign, tmp_path):
    environment = os.environ | hub.environment(tmp_path / "ours")
    command = [sys.executable, *WARNINGS_ARE_ERRORS, "-c", PUSH, str(checkpoint)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    local = {str(path.relative_to(checkpoint)): path.read_bytes() for path in checkpoint.rglob("*") if path.is_file()}
    for repository in ("tester/model", "tester/embedder"):
        there = {name: blob.content for name, blob in hub.commit(repository).files.items()}
        assert set(local) <= set(there)
        for name in (
            "model.safetensors",
            "config.json",
            "modeling_umarvel.py",
            "chat_template.jinja",
            "tokenizer.json",
        ):
            assert there[name] == local[name], (repository, name)

    found = json.loads(run_foreign(LOAD, env=hub.environment(tmp_path / "theirs")))
    item = {"image": Image.new("RGB", (56, 56), (200, 30, 30)), "text": "a dog"}
    expected = embedder.encode([item], prompt="Find it.")[0]
    for repository in ("tester/model", "tester/embedder"):
        for vector in found[repository]:
            np.testing.assert_allclose(vector, expected, rtol=0, atol=1e-5)
    assert "tester/nothing" in found["missing"]
