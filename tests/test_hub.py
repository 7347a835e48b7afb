"""Models go to the Hub and come back the same where our package is not installed; what goes wrong says what to do."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from foreign import CHECKOUT, WARNINGS_ARE_ERRORS
from hub_server import HubServer
from umarvel_hf.hub import local_folder, push
from umarvel_hf.reranker_checkpoint import new_reranker

OURS = """
import sys

import torch

from umarvel_hf._torchvision import ensure_torchvision

ensure_torchvision()
torch.set_num_threads(1)
"""

PUSH = f"""{OURS}
from sentence_transformers import CrossEncoder
from transformers import AutoProcessor

from umarvel_hf import load, push
from umarvel_hf.modeling.modeling_umarvel import UMarvelModel

checkpoint, reranker = sys.argv[1:]
UMarvelModel.from_pretrained(checkpoint).push_to_hub("tester/model")
AutoProcessor.from_pretrained(checkpoint, trust_remote_code=True).push_to_hub("tester/model")
load(checkpoint).push_to_hub("tester/embedder")
push(checkpoint, "tester/folder", private=True, message="A first one")
CrossEncoder(reranker, trust_remote_code=True).push_to_hub("tester/cross-encoder")
push(reranker, "reranker")  # of whoever pushes: tester
"""

VECTORS = """
import json, sys
import torch
from PIL import Image
from sentence_transformers import CrossEncoder, SentenceTransformer
from transformers import AutoModel, AutoProcessor

torch.set_num_threads(1)
image, found = Image.new("RGB", (56, 56), (200, 30, 30)), {}
item = {"image": image, "text": "a dog"}
chat = [
    {"role": "system", "content": [{"type": "text", "text": "Find it."}]},
    {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "a dog"}]},
]
embedders, rerankers = (json.loads(one) for one in sys.argv[1:3])
for place, revision in embedders:
    given = {"trust_remote_code": True, **({"revision": revision} if revision else {})}
    embedder = SentenceTransformer(place, **given)
    processor, model = (one.from_pretrained(place, **given) for one in (AutoProcessor, AutoModel))
    inputs = processor.apply_chat_template(chat, tokenize=True, return_dict=True, return_tensors="pt")
    with torch.no_grad():
        by_model = model(**inputs).pooler_output[0].tolist()
    found[f"{place}@{revision}"] = [embedder.encode([item], prompt="Find it.")[0].tolist(), by_model]
for place in rerankers:
    found[place] = CrossEncoder(place).predict([("Find a dog.", {"text": "a dog"}), ("Find a dog.", item)]).tolist()
json.dump(found, sys.stdout)
"""


@pytest.fixture
def hub():
    with HubServer() as server:
        yield server


@pytest.fixture
def run_ours(hub, tmp_path):
    """``run_ours(code, *args, **variables) -> (status, stdout, stderr)``: against the Hub, with our package."""

    def run(code, *args, **variables):
        environment = os.environ | hub.environment(tmp_path / "ours") | variables
        command = [sys.executable, *WARNINGS_ARE_ERRORS, "-c", code, *map(str, args)]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr

    return run


COMMANDS = """
import contextlib, io, json, os, sys
from umarvel_hf.cli import main

found = []
for arguments, variables in json.loads(sys.argv[1]):
    os.environ |= variables
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        status = main(arguments)
    found.append((status, out.getvalue(), err.getvalue()))
json.dump(found, sys.stdout)
"""


@pytest.fixture
def umarvel(run_ours):
    """``umarvel(*commands, **variables) -> [(status, stdout, stderr)]``: commands in one process, against the Hub.

    A command is its arguments, and may end in a dict of variables that are set before it.
    """

    def run(*commands, **variables):
        split = [(one[:-1], one[-1]) if isinstance(one[-1], dict) else (one, {}) for one in commands]
        asked = [([str(argument) for argument in arguments], set_) for arguments, set_ in split]
        status, out, err = run_ours(COMMANDS, json.dumps(asked), **variables)
        assert status == 0, err
        return json.loads(out)

    return run


@pytest.fixture(scope="module")
def reranker(bases, tmp_path_factory):
    return new_reranker(bases("qwen2_vl"), tmp_path_factory.mktemp("reranker") / "model")


def test_what_is_pushed_comes_back_the_same_without_our_package(
    hub, checkpoint, reranker, run_ours, run_foreign, tmp_path
):
    status, _, stderr = run_ours(PUSH, checkpoint, reranker)
    assert status == 0, stderr
    for repository, folder in {
        "tester/model": checkpoint,
        "tester/embedder": checkpoint,
        "tester/folder": checkpoint,
        "tester/reranker": reranker,
    }.items():
        there = {name: blob.content for name, blob in hub.commit(repository).files.items()}
        local = {one.relative_to(folder).as_posix(): one.read_bytes() for one in folder.rglob("*") if one.is_file()}
        assert set(local) <= set(there)
        for name in ("model.safetensors", "config.json", "chat_template.jinja", "tokenizer.json"):
            assert there[name] == local[name], (repository, name)
    assert hub.commit("tester/folder").message == "A first one"
    assert hub.commit("tester/folder").files["README.md"].content == (checkpoint / "README.md").read_bytes()

    embedders = [(str(checkpoint), None), *((f"tester/{one}", None) for one in ("model", "embedder", "folder"))]
    rerankers = [str(reranker), "tester/cross-encoder", "tester/reranker"]
    given = (json.dumps(embedders), json.dumps(rerankers))
    found = json.loads(run_foreign(VECTORS, *given, env=hub.environment(tmp_path / "theirs")))
    expected = found[f"{checkpoint}@None"]
    for place, _ in embedders:
        assert found[f"{place}@None"] == expected, place
    for place in rerankers:
        assert found[place] == found[str(reranker)], place


TRAIN = f"""{OURS}
import json

from datasets import Dataset

from umarvel_hf import UMarvelTrainer, UMarvelTrainingArguments, load

checkpoint, found = sys.argv[1], {{}}
columns = {{"query": ["a dog", "a cat", "a bench", "red"], "positive": ["dogs", "cats", "benches", "blue"]}}
rows = Dataset.from_dict(columns)
for strategy in ("end", "every_save", "checkpoint", "all_checkpoints"):
    arguments = UMarvelTrainingArguments(
        f"out-{{strategy}}", max_steps=2, save_steps=1, per_device_train_batch_size=2, learning_rate=1e-2,
        lr_scheduler_type="constant", push_to_hub=True, hub_model_id=f"tester/{{strategy}}", hub_strategy=strategy,
        hub_always_push=True, use_cpu=True, report_to="none", disable_tqdm=True,
    )
    trainer = UMarvelTrainer(model=load(checkpoint, device="cpu"), args=arguments, train_dataset=rows)
    trainer.train()
    if strategy == "end":
        trainer.push_to_hub()
    trainer.model.save_pretrained(f"final-{{strategy}}")
"""


def test_the_trainer_pushes_models_that_load_by_every_strategy(hub, checkpoint, run_ours, run_foreign, tmp_path):
    status, _, stderr = run_ours(TRAIN, checkpoint)
    assert status == 0, stderr
    pushed = {name: set(hub.commit(f"tester/{name}").files) for name in ("end", "checkpoint", "all_checkpoints")}
    assert not any(name.startswith(("checkpoint-", "last-")) for name in pushed["end"])
    assert "last-checkpoint/model.safetensors" in pushed["checkpoint"]
    assert {f"checkpoint-{step}/model.safetensors" for step in (1, 2)} <= pushed["all_checkpoints"]
    # While it trained, a push a step: the first loads, too.
    first = next(one for one in hub.repositories["tester/every_save"] if "model.safetensors" in one.files)
    assert {"modules.json", "modeling_umarvel.py", "1_Normalize/config.json"} <= set(first.files)

    strategies = ("end", "every_save", "checkpoint", "all_checkpoints")
    finals = [(str(tmp_path / f"final-{one}"), None) for one in strategies]
    embedders = [*finals, *((f"tester/{one}", None) for one in strategies), ("tester/every_save", first.oid)]
    found = json.loads(run_foreign(VECTORS, json.dumps(embedders), "[]", env=hub.environment(tmp_path / "theirs")))
    for strategy, (folder, _) in zip(strategies, finals, strict=True):
        assert found[f"tester/{strategy}@None"] == found[f"{folder}@None"], strategy


def test_five_libraries_use_a_pushed_checkpoint(hub, checkpoint, run_foreign, tmp_path):
    hub.fill("tester/embedder", checkpoint)
    code = Path(__file__).with_name("five_libraries.py").read_text()
    seen = json.loads(run_foreign(code, "tester/embedder", env=hub.environment(tmp_path / "theirs")))
    assert seen["shape"] == [1, 32] and seen["nearest"] == "blue" and seen["score"] == pytest.approx(1, abs=1e-5)
    assert seen["difference"] == 0.0 and seen["adapter"] == 0.0 and seen["moved"] > 1e-3


LOAD = f"""{OURS}
import json

from umarvel_hf import load

found = []
for place, revision in json.loads(sys.argv[1]):
    model = load(place, device="cpu", **({{"revision": revision}} if revision else {{}}))
    found.append(model.encode(["a dog"])[0].tolist())
json.dump(found, sys.stdout)
"""


def test_a_revision_pins_what_is_loaded(hub, checkpoints, umarvel, run_ours):
    def loaded(*places, **variables):
        status, out, err = run_ours(LOAD, json.dumps(places), **variables)
        assert status == 0, err
        return json.loads(out)

    one, other = (str(checkpoints(family)) for family in ("qwen2_vl", "qwen3_vl"))
    pushes = [("push", one, "a/moving"), ("push", other, "a/moving"), ("push", one, "a/moving", "--revision", "next")]
    assert [status for status, *_ in umarvel(*pushes)] == [0, 0, 0]
    first, second = (commit.oid for commit in hub.repositories["a/moving"][1:])
    places = [
        (one, None),
        ("a/moving", first),
        ("a/moving", "next"),
        (other, None),
        ("a/moving", None),
        ("a/moving", second),
    ]
    found = loaded(*places)
    assert found[0] == found[1] == found[2] != found[3] == found[4] == found[5]
    # What is in the cache loads without the Hub, pinned or not; nothing else does, and nothing is pushed.
    offline = loaded(("a/moving", first), (f"a/moving@{first}", None), ("a/moving", None), HF_HUB_OFFLINE="1")
    assert offline == [found[0], found[0], found[3]]
    search = ("search", "a dog", "--model", "a/else", "--images", ".")
    (*_, looked), (*_, pushed) = umarvel(search, pushes[0], HF_HUB_OFFLINE="1")
    assert "a/else is no folder and not in the cache, and" in looked and "HF_HUB_OFFLINE is set" in looked
    assert "a/moving cannot be pushed while HF_HUB_OFFLINE is set; unset it." in pushed


def test_what_goes_wrong_with_the_hub_says_what_to_do(hub, checkpoint, umarvel, tmp_path):
    hub.fill("a/embedder", checkpoint)
    hub.fill("a/gated", checkpoint)
    hub.gated.add("a/gated")
    search = ("search", "a dog", "--images", CHECKOUT / "tests/golden/qwen2_vl/images", "--model")
    push_it = ("push", checkpoint, "a/mine")
    found = umarvel(
        (*search, "a/nothing"),
        (*search, "a/gated"),
        (*push_it, {"HF_TOKEN": "hf_read"}),
        (*push_it, {"HF_TOKEN": "", "HF_TOKEN_PATH": str(tmp_path / "none")}),
        (*search, "a/gated", {"HF_TOKEN": "hf_let_in"}),
    )
    found[4:] = [found[4], *umarvel((*search, "a/embedder"), push_it, HF_ENDPOINT="http://127.0.0.1:9")]
    assert [status for status, *_ in found] == [2, 2, 2, 2, 0, 2, 2]
    assert all(err.startswith("umarvel: ") and err.count("\n") == 1 for _, _, err in found[:4] + found[5:])
    missing, gated, refused, no_token, _, gone, not_pushed = (err.removeprefix("umarvel: ") for *_, err in found)
    assert missing.startswith("a/nothing is neither a folder here nor a repository on http://127.0.0.1:")
    assert "log in with `hf auth login`, or set HF_TOKEN" in missing
    assert gated.startswith("a/gated is gated: accept its terms on http://127.0.0.1:") and "hf auth login" in gated
    assert "refuses to write to a/mine (403); log in with" in refused and "a token that may write" in refused
    assert no_token.startswith("There is no token to push to a/mine with; log in with `hf auth login`")
    assert "a/embedder is no folder and not in the cache, and http://127.0.0.1:9 was not reached" in gone
    assert "http://127.0.0.1:9 was not reached for a/mine" in not_pushed


def test_a_folder_that_is_not_there_is_not_pushed(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist; give the folder of a checkpoint"):
        push(tmp_path / "nothing", "a/b")


@pytest.mark.parametrize("take", [local_folder, partial(push, repo="a/b")], ids=["loaded", "pushed"])
@pytest.mark.parametrize("name", ["config.json", "adapter_config.json"])
def test_the_folder_of_a_run_is_told_from_its_model(tmp_path, name, take):
    with pytest.raises(FileNotFoundError, match=r"has no config\.json, so it is no checkpoint; give the folder of one"):
        take(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / name).touch()
    with pytest.raises(FileNotFoundError, match=r"so it is no checkpoint; a run left its model in .*model: give that"):
        take(tmp_path)


def test_a_revision_of_a_folder_is_refused(checkpoint):
    with pytest.raises(ValueError, match=r"revision is 'main', but .* is a folder\. Leave it out"):
        local_folder(checkpoint, revision="main")


def test_two_revisions_are_refused():
    with pytest.raises(ValueError, match="two revisions are given, a/b@main and 'next'; give one"):
        local_folder("a/b@main", revision="next")
