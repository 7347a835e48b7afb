"""Examine a machine and a checkpoint: what is asked, what was found, and what to do."""

import platform
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from packaging.requirements import Requirement
from PIL import Image

from umarvel_hf._torchvision import ensure_torchvision

ensure_torchvision()
import torch

from umarvel_hf.emoji import model_dir
from umarvel_hf.emoji.cache import cache_dir
from umarvel_hf.encoding import encode, load

State = Literal["ok", "note", "wrong"]
FREE_BYTES = 10_000_000_000  # what a model of two billion parameters takes, twice
# By how far a vector may move, the largest of its numbers: sums in another order, in each type of the weights.
TOLERANCES = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}
TEXTS = ("a red heart", "a poodle to the left of a guitar, in the rain, seen from above", "dog")


@dataclass(frozen=True)
class Check:
    """One question and its answer; ``remedy`` is what to do, empty where there is nothing to do."""

    name: str
    state: State
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """All answers."""

    checks: tuple[Check, ...]

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong; notes are allowed."""
        return all(check.state != "wrong" for check in self.checks)

    def __str__(self) -> str:
        width = max(len(check.name) for check in self.checks)
        lines = []
        for check in self.checks:
            lines.append(f"{check.state:5}  {check.name:{width}}  {check.found}")
            if check.remedy:
                lines.append(f"{'':5}  {'':{width}}  → {check.remedy}")
        return "\n".join(lines)


def examine(model: str | Path | None = None, *, device: str | None = None) -> Diagnosis:
    """Ask everything; a question that fails is an answer, too.

    Args:
        model: Folder or Hub id of a U-MARVEL checkpoint; None: the one that ships.
        device: Where it runs; None: the best there is.
    """
    checks = [_asked(one) for one in (_versions, _torchvision, _device, _faiss, _disk, _hub)]
    try:
        embedder = load(str(model or model_dir()), device=device)
    except Exception as error:
        told = " ".join(str(error).split())
        checks.append(Check("checkpoint", "wrong", told, "name a checkpoint that is there, or leave it out"))
        return Diagnosis(tuple(checks))
    kind, dimension = cast(Any, embedder[0]).model.config.vlm_config.model_type, embedder.get_embedding_dimension()
    told = f"{model or 'the shipped one'}: {kind}, {dimension} dimensions, {embedder.dtype}, on {embedder.device}"
    checks.append(Check("checkpoint", "ok", told.replace("torch.", "")))
    for one in (_attention, _padding, _encoding, _kernels):
        checks.append(_asked(one, embedder))
    return Diagnosis(tuple(checks))


def _asked(question: Callable[..., Check], *given: Any) -> Check:
    try:
        return question(*given)
    except Exception as error:
        name = question.__name__.strip("_").replace("_", " ")
        told = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return Check(name, "wrong", told, "report it, with this line and `pip freeze`")


def _versions() -> Check:
    """Whether what is installed is what the package asks for."""
    wrong, found = [], [f"python {platform.python_version()}"]
    for line in requires("umarvel_hf") or ():
        wanted = Requirement(line)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            there = version(wanted.name)
        except PackageNotFoundError:
            there = "missing"
        if there == "missing" or not wanted.specifier.contains(there, prereleases=True):
            wrong.append((f"{wanted.name} {there}", f"{wanted.name}{wanted.specifier}"))
        if wanted.name in ("torch", "transformers", "sentence-transformers", "peft"):
            found.append(f"{wanted.name} {there}")
    if wrong:
        remedy = f"pip install -U {' '.join(repr(needed) for _, needed in wrong)}"
        return Check("versions", "wrong", ", ".join(there for there, _ in wrong), remedy)
    return Check("versions", "ok", ", ".join(found))


def _torchvision() -> Check:
    import torchvision
    from torchvision import transforms  # noqa: F401  (what processors need)

    try:
        torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    except (AttributeError, NotImplementedError, RuntimeError):
        told = f"{torchvision.__version__}, without operators; pictures are read without them, so vectors are the same"
        return Check("torchvision", "note", told, "install the build that belongs to this torch, for other libraries")
    return Check("torchvision", "ok", torchvision.__version__)


def _device() -> Check:
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        told = f"{torch.cuda.device_count()} × {card.name}, {card.total_memory / 1e9:.0f} GB, bfloat16 "
        return Check("device", "ok", told + ("native" if native else "emulated"))
    if torch.backends.mps.is_available():
        return Check("device", "ok", "mps")
    if shutil.which("nvidia-smi") and torch.version.cuda is None:
        remedy = "install a torch build for CUDA: https://pytorch.org/get-started"
        return Check("device", "wrong", f"a GPU driver is here, but torch {torch.__version__} cannot use it", remedy)
    return Check("device", "note", f"no GPU; {torch.get_num_threads()} threads of the CPU")


def _faiss() -> Check:
    import faiss

    rows = np.random.default_rng(0).standard_normal((200, 32)).astype(np.float32)
    index = faiss.IndexFlatIP(32)
    index.add(rows)
    _, found = index.search(rows[:20], 1)
    if not (found[:, 0] == (rows[:20] @ rows.T).argmax(axis=1)).all():
        return Check(
            "faiss", "wrong", f"{faiss.__version__} finds other rows than a product", "pip install -U faiss-cpu"
        )
    return Check("faiss", "ok", f"{faiss.__version__} finds what a product finds")


def _disk() -> Check:
    from huggingface_hub.constants import HF_HOME

    free = {}
    for folder in (Path(HF_HOME), cache_dir()):
        there = next(one for one in (folder.absolute(), *folder.absolute().parents) if one.is_dir())
        free[str(folder)] = shutil.disk_usage(there).free
    told = ", ".join(f"{size / 1e9:.0f} GB at {folder}" for folder, size in free.items())
    if min(free.values()) < FREE_BYTES:
        remedy = "free some, or point HF_HOME and UMARVEL_CACHE elsewhere: a 2B model takes 5 GB, a 7B one 17 GB"
        return Check("free disk", "note", told, remedy)
    return Check("free disk", "ok", told)


def _hub() -> Check:
    from huggingface_hub import get_token
    from huggingface_hub.constants import ENDPOINT, is_offline_mode

    if is_offline_mode():
        return Check("hub", "note", "HF_HUB_OFFLINE is set: only what is in the cache is loaded", "unset it to fetch")
    token = "a token is stored" if get_token() else "no token: public repositories only, and nothing is pushed"
    return Check("hub", "ok", f"{ENDPOINT}, {token}")


def _attention(embedder: Any) -> Check:
    """Whether a later token changes an earlier one's state, as the configuration says it does."""
    model, said = embedder[0].model, embedder[0].model.config.bidirectional
    features = embedder.preprocess(["a red heart and a dog"])
    ids, mask = (features[name].to(embedder.device) for name in ("input_ids", "attention_mask"))
    other = ids.clone()
    # Some token of the text: the last few are the template's own, and of a kind that ends spans.
    at = ids.shape[1] // 2
    other[0, at] = ids[0, 0] if ids[0, at] != ids[0, 0] else ids[0, 1]
    with torch.inference_mode():
        before, after = (model(input_ids=one, attention_mask=mask).last_hidden_state[0, :at] for one in (ids, other))
    moved = float((before.float() - after.float()).abs().max())
    is_so = moved > TOLERANCES[embedder.dtype]
    told = f"{'bidirectional' if is_so else 'causal'}: a later token moves earlier states by {moved:.2g}"
    if is_so == said:
        return Check("attention", "ok", told)
    remedy = f"config.json says bidirectional={said}; load it by AutoModel with trust_remote_code, or convert it anew"
    return Check("attention", "wrong", told, remedy)


def _padding(embedder: Any) -> Check:
    """Whether a text has one vector, alone and padded, on either side."""
    alone = np.concatenate([embedder.encode([text]) for text in TEXTS])
    tokenizer, worst = embedder.tokenizer, 0.0
    usual = tokenizer.padding_side
    try:
        for tokenizer.padding_side in ("left", "right"):
            worst = max(worst, float(np.abs(embedder.encode(list(TEXTS)) - alone).max()))
    finally:
        tokenizer.padding_side = usual
    return _compared("padding", f"a text alone and in a padded batch differ by {worst:.2g}", worst, embedder.dtype)


def _encoding(embedder: Any) -> Check:
    """Whether our encoding gives Sentence Transformers' vectors, of texts and pictures."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8))
    items = [*TEXTS, picture, {"image": picture, "text": "a dog"}]
    worst = float(np.abs(encode(embedder, items) - embedder.encode(items)).max())
    return _compared("encoding", f"encode and SentenceTransformer.encode differ by {worst:.2g}", worst, embedder.dtype)


def _kernels(embedder: Any) -> Check:
    """Whether attention by this hardware's kernel is attention as it is defined."""
    config = embedder[0].model.config.get_text_config()
    fast = embedder.encode(list(TEXTS))
    with _attending(config, "eager") as usual:
        plain = embedder.encode(list(TEXTS))
    worst = float(np.abs(fast - plain).max())
    return _compared("kernels", f"{usual} and eager attention differ by {worst:.2g}", worst, embedder.dtype)


def _compared(name: str, told: str, worst: float, dtype: torch.dtype) -> Check:
    limit = TOLERANCES[dtype]
    if worst <= limit:
        return Check(name, "ok", told)
    remedy = "upgrade torch and transformers, or load with attn_implementation='eager'; report it if that does not help"
    return Check(name, "wrong", f"{told}, more than {limit:g}", remedy)


@contextmanager
def _attending(config: Any, implementation: str) -> Iterator[str]:
    """Let a model attend in another way; gives its usual one."""
    usual = config._attn_implementation
    config._attn_implementation = implementation
    try:
        yield usual
    finally:
        config._attn_implementation = usual
