"""What shaped vectors besides their inputs, as checksums that stores and manifests keep."""

import hashlib
import inspect
import json
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from torch import nn


def fingerprint(model: Any) -> dict[str, str]:
    """What shapes the vectors of a model, besides its inputs: equal where the same vectors come out.

    Where a checkpoint lies does not count. The weights are hashed as they are stored, a tensor at a time.

    Args:
        model: A ``SentenceTransformer``; of any other encoder only the class is known.
    """
    from umarvel_hf._torchvision import ensure_torchvision

    ensure_torchvision()
    from sentence_transformers import SentenceTransformer

    whole = model if isinstance(model, SentenceTransformer) else getattr(model, "model", None)  # of several devices
    if not isinstance(whole, SentenceTransformer):
        return {"encoder": f"{type(model).__module__}.{type(model).__qualname__}"}
    return _of_model(whole)


def _of_model(model: "SentenceTransformer") -> dict[str, str]:
    modules: list[Any] = list(model)
    processor, config = modules[0].processor, modules[0].model.config
    kinds = [kind for kind in ("image", "video") if getattr(processor, f"{kind}_processor", None) is not None]
    media = {kind: getattr(processor, f"{kind}_processor").to_dict() for kind in kinds}
    tokenizer = json.loads(getattr(processor, "tokenizer", processor).backend_tokenizer.to_str())
    settings = {
        "modules": [(type(module).__name__, module.get_config_dict()) for module in modules],
        "config": config.to_dict(),
        "media": media,
        "chat_template": getattr(processor, "chat_template", None),
        # Padding and truncation are set anew by every call.
        "tokenizer": {name: part for name, part in tokenizer.items() if name not in ("padding", "truncation")},
        "lengths": [model.max_seq_length, model.truncate_dim],
        "prompts": [model.prompts, model.default_prompt_name],
    }
    return {
        "weights": weights_digest(model),
        "code": _digest(_code(model)),
        "settings": _digest([json.dumps(_placeless(settings), sort_keys=True, default=str).encode()]),
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": str(config._attn_implementation),
        **{f"{kind} limits": _limits(one) for kind, one in media.items()},
        **{name: version(name) for name in ("transformers", "sentence-transformers")},
    }


def _digest(parts: Iterable[bytes | memoryview]) -> str:
    checksum = hashlib.sha256()
    for part in parts:
        checksum.update(part)
    return checksum.hexdigest()[:16]


def weights_digest(model: "nn.Module") -> str:
    """A checksum of names, types, shapes and values of all weights, 16 characters."""
    return _digest(_weights(model))


def _weights(model: "nn.Module") -> Iterable[bytes | memoryview]:
    import torch

    for name, tensor in sorted(model.state_dict().items()):
        yield f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode()
        # As bytes, since numpy has no bfloat16.
        yield tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _code(model: "SentenceTransformer") -> Iterable[bytes]:
    """The sources that came with the checkpoint, or those of ours in their place, by name."""
    kinds = {type(module) for module in model.modules()}
    ours = {kind for kind in kinds if kind.__module__.startswith(("transformers_modules.", "umarvel_hf."))}
    folders = {Path(inspect.getfile(kind)).parent for kind in ours}
    sources = {path.name: path for folder in sorted(folders) for path in sorted(folder.glob("*.py"))}
    for name, path in sorted(sources.items()):
        yield name.encode()
        yield path.read_bytes()


def _placeless(value: Any) -> Any:
    """Without what says where a checkpoint came from, or stands in the fingerprint under its own name."""
    if isinstance(value, dict):
        left_out = ("_name_or_path", "_commit_hash", "transformers_version", "auto_map", "dtype")
        return {str(name): _placeless(one) for name, one in value.items() if name not in left_out}
    return [_placeless(one) for one in value] if isinstance(value, list | tuple) else value


def _limits(processor: dict[str, Any]) -> str:
    names = ("size", "max_image_size", "min_pixels", "max_pixels", "fps", "num_frames", "min_frames", "max_frames")
    return ", ".join(f"{name} {processor[name]}" for name in names if processor.get(name) is not None)
