"""Copies of checkpoints with other weights, configuration or files, and what a checkpoint's files hold."""

import json
import shutil

from safetensors.torch import load_file, save_file


def weights_of(folder):
    return load_file(folder / "model.safetensors")


def embedding_rows(folder):
    (rows,) = (tensor for name, tensor in weights_of(folder).items() if name.endswith("embed_tokens.weight"))
    return rows


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def edited(source, target, weights=None, config=None, files=None):
    """A copy of a checkpoint whose weights, configuration or files a function has changed."""
    target = shutil.copytree(source, target)
    if weights:
        tensors = weights_of(target)
        save_file(tensors if (changed := weights(tensors)) is None else changed, target / "model.safetensors")
    if config:
        settings = config_of(target)
        config(settings)
        (target / "config.json").write_text(json.dumps(settings))
    if files:
        files(target)
    return target
