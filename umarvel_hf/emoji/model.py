"""The shipped model: its weights and settings are package data, its code is the package's own."""

import hashlib
import shutil
from importlib.resources import as_file, files
from pathlib import Path

from umarvel_hf.emoji.cache import cache_dir, write_once

CODE = ("configuration_umarvel.py", "modeling_umarvel.py", "messages_umarvel.py", "sentence_transformers_umarvel.py")


def model_dir() -> Path:
    """Folder of the shipped model as a complete checkpoint, put together in the cache on first use.

    Raises:
        FileNotFoundError: The package was installed without its data.
    """
    shipped = files("umarvel_hf.emoji").joinpath("model")
    if not shipped.joinpath("config.json").is_file():
        raise FileNotFoundError(f"{shipped} holds no model; install umarvel_hf anew, or train it: umarvel train emoji.")
    with as_file(shipped) as weights, as_file(files("umarvel_hf.modeling")) as code:
        parts = {str(path.relative_to(weights)): path for path in sorted(weights.rglob("*")) if path.is_file()}
        parts |= {name: code / name for name in CODE}
        digest = hashlib.sha256()
        for name, path in sorted(parts.items()):
            digest.update(name.encode() + hashlib.sha256(path.read_bytes()).digest())

        def fill(folder: Path) -> None:
            for name, path in parts.items():
                (folder / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(path, folder / name)

        return write_once(cache_dir() / f"emoji-model-{digest.hexdigest()[:12]}", fill)
