"""How fast items become vectors: ours beside stock Sentence Transformers and the reference's forward, same weights.

    python benchmarks/encode.py
    python benchmarks/encode.py --items 24 --repetitions 2 --settings mix

Three subjects embed the same items with the same random weights (a Qwen2-VL of 41 million) and take turns:

- `umarvel_hf`: `umarvel_hf.encode`.
- `sentence-transformers`: `SentenceTransformer.encode` of the same checkpoint, as it comes.
- `reference`: the original's way to a vector, expressed anew (recipe.md §1): batches of 16 as they come, padded to the
  longest, through a causal language model with its key-value cache and its head over every token.

Settings: `mix` (of ten items four short texts, two long ones, two pictures, two pictures with a text), in float32 and
in bfloat16; `skewed` (19 of 20 short texts, the others large pictures and films of eight frames) in float32;
`recommended`: the mix from a float32 checkpoint, stock as it loads it, ours with `dtype="auto"`.

The roofline is the time that the operations of the tokens alone, nothing padded, would take at the rate of a large
matrix product of the same type, measured in the same rounds. Memory is that of a process of its own.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from umarvel_hf._torchvision import ensure_torchvision

ensure_torchvision()
import numpy as np
import torch
from measure import Products, interleaved, machine, ratio, table
from memory import alone, peak_rss
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForImageTextToText
from workload import Draw, operations, write_checkpoint

from umarvel_hf.encoding import encode, fastest_dtype, load

OURS, STOCK, REFERENCE = "umarvel_hf", "sentence-transformers", "reference"
REFERENCE_BATCH = 16
SETTINGS = {  # the items, the type of ours, that of the others
    "mix": [("mix", "float32", "float32"), ("mix", "bfloat16", "bfloat16")],
    "skewed": [("skewed", "float32", "float32")],
    "recommended": [("mix", "auto", "float32")],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=96, help="default: %(default)s")
    parser.add_argument("--repetitions", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write_checkpoint(Path(folder) / "model")
        rows = [
            row
            for name in arguments.settings
            for kind, ours, theirs in SETTINGS[name]
            for row in compare(checkpoint, kind, ours, theirs, arguments.items, arguments.repetitions)
        ]
    header = ["items", "subject", "type", "seconds", "stock ÷ subject", "items/s", "tokens/s", "padding", "peak RSS"]
    print(machine())
    print(table([*header, "of roofline", "least cosine"], rows))


def compare(checkpoint: Path, kind: str, ours: str, theirs: str, count: int, repetitions: int) -> list[list[str]]:
    """The rows of one setting."""
    items = getattr(Draw(), kind)(count)
    types = {OURS: str(fastest_dtype("cpu")).removeprefix("torch.") if ours == "auto" else ours, STOCK: theirs}
    if ours == theirs:
        types[REFERENCE] = theirs
    subjects = {name: Subject(name, checkpoint, dtype) for name, dtype in types.items()}
    products = {dtype: Products(getattr(torch, dtype)) for dtype in types.values()}
    runs = {name: partial(one.run, items) for name, one in subjects.items()}
    seconds, vectors = interleaved({**runs, **products}, repetitions)
    tokens, read, seen = operations(subjects[STOCK].model, items)
    rows = []
    for name, subject in subjects.items():
        middle = statistics.median(seconds[name])
        roof = (read + seen) / products[types[name]].rate(seconds[types[name]])
        memory = alone(peak_of, name, checkpoint, types[name], kind, count)
        rows.append([
            f"{count} {kind}", name, types[name], f"{middle:.2f} ({min(seconds[name]):.2f}–{max(seconds[name]):.2f})",
            ratio(seconds[STOCK], seconds[name]), f"{count / middle:.1f}", f"{tokens / middle:,.0f}",
            f"{subject.padding:.1%}", f"{memory / 1e9:.2f} GB", f"{roof / middle:.0%}",
            f"{(vectors[name] * vectors[STOCK]).sum(axis=1).min():.6f}",
        ])  # fmt: skip
    return rows


class Subject:
    """A way to embed items, which also counts what it pads."""

    def __init__(self, name: str, checkpoint: Path, dtype: str) -> None:
        self.model = load(checkpoint, dtype=dtype, device="cpu")
        self._slots = self._tokens = 0
        ways: dict[str, Callable[[list[Any]], np.ndarray]] = {
            OURS: lambda items: encode(self.model, items),
            STOCK: self.model.encode,
            REFERENCE: reference(self.model),
        }
        self.run = ways[name]
        self.model[0].model.vlm.register_forward_pre_hook(self._count, with_kwargs=True)

    @property
    def padding(self) -> float:
        return 1 - self._tokens / self._slots

    def _count(self, module: Any, given: Any, named: dict[str, Any]) -> None:
        self._tokens += int(named["attention_mask"].sum())
        self._slots += named["attention_mask"].numel()


def reference(model: SentenceTransformer) -> Callable[[list[Any]], np.ndarray]:
    """The reference's forward: a language model with cache and head, whose states are pooled as ours are."""
    embedder = model[0].model
    with torch.device("meta"):
        language_model = AutoModelForImageTextToText.from_config(embedder.config.vlm_config)
    language_model.model = embedder.vlm
    language_model.tie_weights()

    @torch.inference_mode()
    def run(items: list[Any]) -> np.ndarray:
        vectors = []
        for start in range(0, len(items), REFERENCE_BATCH):
            features = model.preprocess(items[start : start + REFERENCE_BATCH])
            inputs = {name: one for name, one in features.items() if isinstance(one, torch.Tensor)}
            inputs = {name: one for name, one in inputs.items() if not name.startswith("num_")}
            output = language_model(**inputs, use_cache=True, output_hidden_states=True)
            assert output.logits.shape[:2] == inputs["input_ids"].shape and output.past_key_values is not None
            pooled = embedder.pool(output.hidden_states[-1], inputs["input_ids"], inputs["attention_mask"])
            vectors.append(pooled.numpy())
        return np.concatenate(vectors)

    return run


def peak_of(name: str, checkpoint: Path, dtype: str, kind: str, count: int) -> int:
    Subject(name, checkpoint, dtype).run(getattr(Draw(), kind)(count))
    return peak_rss()


if __name__ == "__main__":
    main()
