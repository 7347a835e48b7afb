"""The doctor: a sound checkpoint passes every question, and each fault is found and named."""

import json
import shutil

import pytest
import torch

from edits import edited
from umarvel_hf import doctor
from umarvel_hf.doctor import examine


def states(diagnosis):
    return {check.name: check.state for check in diagnosis.checks}


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl"])
def test_a_sound_checkpoint_has_nothing_wrong(checkpoints, family):
    found = examine(checkpoints(family), device="cpu")
    assert found.sound, str(found)
    names = ["versions", "torchvision", "device", "faiss", "free disk", "hub", "checkpoint", "attention", "padding"]
    assert list(states(found)) == [*names, "encoding", "kernels"]
    told = {check.name: check.found for check in found.checks}
    assert told["attention"].startswith("bidirectional: a later token moves earlier states by ")
    assert family in told["checkpoint"] and "32 dimensions, float32, on cpu" in told["checkpoint"]


def test_a_causal_checkpoint_that_says_so_is_sound(checkpoint, tmp_path):
    def causal(config):
        config["bidirectional"] = False

    found = examine(edited(checkpoint, tmp_path / "causal", config=causal), device="cpu")
    assert found.sound
    assert next(check for check in found.checks if check.name == "attention").found.startswith("causal: ")


def test_attention_that_is_not_what_the_configuration_says_is_wrong(checkpoint, monkeypatch):
    real = doctor.load

    def causal(model, **kwargs):
        embedder = real(model, **kwargs)
        for module in embedder[0].model.modules():
            if hasattr(module, "is_causal"):
                module.is_causal = True
        embedder[0].model.config.get_text_config().is_causal = True
        return embedder

    monkeypatch.setattr(doctor, "load", causal)
    found = examine(checkpoint, device="cpu")
    attention = next(check for check in found.checks if check.name == "attention")
    assert attention.state == "wrong" and "config.json says bidirectional=True" in attention.remedy
    assert not found.sound and "wrong  attention" in str(found)


def test_a_vector_that_padding_changes_is_wrong(checkpoint, monkeypatch):
    real = doctor.load

    def careless(model, **kwargs):
        embedder = real(model, **kwargs)
        inner = embedder[0].model
        pool = inner.pool
        inner.pool = lambda hidden, ids, mask: pool(hidden, ids, torch.ones_like(mask))
        return embedder

    monkeypatch.setattr(doctor, "load", careless)
    assert states(examine(checkpoint, device="cpu"))["padding"] == "wrong"


def test_a_version_that_is_too_old_is_named_with_its_remedy(checkpoint, monkeypatch):
    real = doctor.version
    monkeypatch.setattr(doctor, "version", lambda name: "0.0.1" if name == "faiss-cpu" else real(name))
    check = examine(checkpoint, device="cpu").checks[0]
    assert (check.state, check.found) == ("wrong", "faiss-cpu 0.0.1")
    assert check.remedy.startswith("pip install -U 'faiss-cpu>=")


def test_little_disk_and_an_offline_hub_are_notes(checkpoint, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10, 9, 1))
    found = examine(checkpoint, device="cpu")
    assert states(found)["free disk"] == states(found)["hub"] == "note"
    assert found.sound


def test_a_checkpoint_that_does_not_load_ends_the_questions(tmp_path):
    found = examine(tmp_path / "nothing", device="cpu")
    assert states(found)["checkpoint"] == "wrong" and list(states(found))[-1] == "checkpoint"
    assert "nothing' does not exist" in found.checks[-1].found


def test_a_question_that_fails_is_an_answer(checkpoint, monkeypatch):
    def broken():
        raise RuntimeError("no such kernel")

    broken.__name__ = "_faiss"
    monkeypatch.setattr(doctor, "_faiss", broken)
    check = next(check for check in examine(checkpoint, device="cpu").checks if check.name == "faiss")
    assert (check.state, check.found) == ("wrong", "RuntimeError: no such kernel")


def test_what_it_found_is_plain_json(checkpoint):
    from dataclasses import asdict

    json.dumps(asdict(examine(checkpoint, device="cpu")))
