"""How long a contrastive step takes under gradient caching: ours beside Sentence Transformers' cached loss.

    python benchmarks/train_step.py
    python benchmarks/train_step.py --rows 16 --chunk 4 --repetitions 2

Both take steps of the same batch on the same random weights (a Qwen2-VL of 41 million with an adapter on its decoder
and a frozen vision tower), in chunks of as many rows: queries of a picture of 224 × 224 pixels with a text of one to
four captions, candidates of one to four captions. A step is the processor's work, the loss, and all gradients.

- `umarvel_hf`: `InfoNCE` over batches as `UMarvelTrainer` collates them.
- `sentence-transformers`: `CachedMultipleNegativesRankingLoss` over batches as its trainer collates them.

Both compute the same loss at the same temperature; loss and gradients are compared. The roofline is the time of the
operations that a step cannot do without, at the rate of a large matrix product measured in the same run: the vision
tower once, the decoder twice, and once more for the gradients of what it was given.
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
import torch
from measure import Products, interleaved, machine, ratio, table
from memory import alone, peak_rss
from peft import LoraConfig
from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss
from torch import Tensor
from workload import Draw, operations, write_checkpoint

from umarvel_hf.encoding import load
from umarvel_hf.planning import TokenCounter
from umarvel_hf.trainer.losses import InfoNCE
from umarvel_hf.trainer.trainer import longest_first

OURS, STOCK = "umarvel_hf", "sentence-transformers"
SIDE, CAPTIONS = 224, (1, 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=256, help="of a batch (default: %(default)s)")
    parser.add_argument("--chunk", type=int, default=16, help="rows embedded at a time (default: %(default)s)")
    parser.add_argument("--repetitions", type=int, default=5, help="default: %(default)s")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write_checkpoint(Path(folder) / "model")
        steps = {name: step_of(name, checkpoint, arguments.rows, arguments.chunk) for name in (OURS, STOCK)}
        seconds, results = interleaved({**steps, "products": (products := Products())}, arguments.repetitions)
        memory = {name: alone(peak_of, name, checkpoint, arguments.rows, arguments.chunk) for name in steps}
        tokens, needed = needed_by(checkpoint, arguments.rows)
    roof = needed / products.rate(seconds["products"])
    rows = []
    for name in steps:
        middle = statistics.median(seconds[name])
        rows.append([
            name, f"{middle:.2f} ({min(seconds[name]):.2f}–{max(seconds[name]):.2f})",
            ratio(seconds[STOCK], seconds[name]), f"{arguments.rows / middle:.1f}", f"{tokens / middle:,.0f}",
            f"{memory[name] / 1e9:.2f} GB", f"{roof / middle:.0%}", f"{results[name][0]:.6f}",
        ])  # fmt: skip
    header = ["subject", "seconds", "stock ÷ subject", "rows/s", "tokens/s", "peak RSS", "of roofline", "loss"]
    print(machine())
    print(f"{arguments.rows} rows, chunks of {arguments.chunk}; of the largest gradient {difference(results):.1e} off")
    print(table(header, rows))


def step_of(name: str, checkpoint: Path, rows: int, chunk: int) -> Callable[[], tuple[float, dict[str, Tensor]]]:
    """A step: it returns the loss and the gradients of the adapter."""
    model = load(checkpoint, device="cpu")
    torch.manual_seed(0)
    layers = r".*language_model\.layers\.\d+\..*_proj"
    model.add_adapter(LoraConfig(r=16, target_modules=layers, init_lora_weights=False))
    model.train()
    columns = columns_of(rows)
    preprocess = partial(longest_first, TokenCounter(model[0]), model.preprocess) if name == OURS else model.preprocess
    loss = (
        InfoNCE(model, mini_batch_size=chunk)
        if name == OURS
        else CachedMultipleNegativesRankingLoss(model, mini_batch_size=chunk, scale=20.0)
    )
    trained = {at: one for at, one in model.named_parameters() if one.requires_grad and "lora" in at}

    def step() -> tuple[float, dict[str, Tensor]]:
        model.zero_grad(set_to_none=True)
        value = loss([preprocess(column) for column in columns], None)
        value.backward()
        return value.item(), {at: one.grad.clone() for at, one in trained.items() if one.grad is not None}

    return step


def columns_of(rows: int) -> list[list[Any]]:
    draw = Draw()
    queries = [{"image": draw.picture((SIDE, SIDE)), "text": draw.text(CAPTIONS)} for _ in range(rows)]
    return [queries, [draw.text(CAPTIONS) for _ in range(rows)]]


def difference(results: dict[str, tuple[float, dict[str, Tensor]]]) -> float:
    """The largest difference of a gradient, as a part of the largest gradient."""
    ours, theirs = (results[name][1] for name in (OURS, STOCK))
    assert ours.keys() == theirs.keys()
    largest = max(one.abs().max().item() for one in theirs.values())
    return max((ours[name] - theirs[name]).abs().max().item() for name in ours) / largest


def needed_by(checkpoint: Path, rows: int) -> tuple[int, int]:
    """Tokens of a batch, and the operations of a step."""
    model = load(checkpoint, device="cpu")
    counted = [operations(model, column) for column in columns_of(rows)]
    tokens, read, seen = (sum(column) for column in zip(*counted, strict=True))
    return tokens, 3 * read + seen


def peak_of(name: str, checkpoint: Path, rows: int, chunk: int) -> int:
    step_of(name, checkpoint, rows, chunk)()
    return peak_rss()


if __name__ == "__main__":
    main()
