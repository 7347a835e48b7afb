"""How the memory of a training step grows with the batch, with gradient caching and without.

    python benchmarks/step_memory.py
    python benchmarks/step_memory.py --rows 32 64 --plain 32

Every measurement is a process of its own that takes two optimiser steps of InfoNCE with one hard negative, in float32
on the CPU, on a Qwen2-VL of 9 million parameters with random weights and random pictures of 64 × 64 pixels beside a
text, and reports its peak resident memory. The floor is such a process with the model and the trainer and a batch of
one mini-batch. With caching the whole batch is held as inputs and embeddings, but only one mini-batch of
activations: larger pictures are larger inputs (1.2 MB at 224 × 224), and grow with the batch whatever a loss does.
"""

import argparse
import multiprocessing
import resource
import tempfile
from pathlib import Path

CHUNK = 8
SIDE = 64  # as in the embedded benchmark


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[64, 256, 1024], help="batch sizes with caching")
    parser.add_argument("--plain", type=int, nargs="*", default=[8, 32, 64], help="batch sizes without")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = alone(write_checkpoint, Path(folder) / "model")
        floor = alone(peak_of_steps, checkpoint, CHUNK, CHUNK)
        first = None
        print(f"{'caching':>12} {'rows':>6} {'peak':>10} {'above floor':>12} {'to first':>9}")
        for name, chunk, sizes in ((f"chunks of {CHUNK}", CHUNK, arguments.rows), ("none", None, arguments.plain)):
            first = None
            for rows in sizes:
                peak = alone(peak_of_steps, checkpoint, rows, chunk)
                first = first or peak
                print(
                    f"{name:>12} {rows:>6,} {peak / 1e6:>7,.0f} MB {(peak - floor) / 1e6:>9,.0f} MB "
                    f"{peak / first:>9.2f}"
                )


def alone(function, *given):
    """Call a function in a process of its own, so that its memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, given)


def write_checkpoint(out: Path) -> Path:
    """A tiny base of the recipes, larger: six layers of 256 over pictures of 16 visual tokens."""
    from umarvel_hf.checkpoint import new_model
    from umarvel_hf.data import MBeir
    from umarvel_hf.emoji import benchmark_dir
    from umarvel_hf.emoji.base import BaseSize, build_base

    size = BaseSize(hidden=256, layers=6, intermediate=768, vision_hidden=256, patch=8, image_side=SIDE)
    return new_model(build_base(MBeir(benchmark_dir()), out.with_name("base"), size, seed=0), out)


def peak_of_steps(checkpoint: Path, rows: int, chunk: int | None) -> int:
    """Peak resident bytes of two steps."""
    import torch
    from datasets import Dataset

    from umarvel_hf.encoding import load
    from umarvel_hf.trainer.arguments import UMarvelTrainingArguments
    from umarvel_hf.trainer.trainer import UMarvelTrainer

    torch.set_num_threads(1)
    columns = ("anchor", "positive", "negative")
    numbers = Dataset.from_dict({name: list(range(2 * rows)) for name in columns}).with_transform(pictured)
    with tempfile.TemporaryDirectory() as folder:
        arguments = UMarvelTrainingArguments(
            output_dir=folder, per_device_train_batch_size=rows, mini_batch_size=chunk, max_steps=2, use_cpu=True,
            save_strategy="no", report_to="none", disable_tqdm=True,
        )  # fmt: skip
        model = load(checkpoint, device="cpu")
        UMarvelTrainer(model=model, args=arguments, train_dataset=numbers).train()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def pictured(batch: dict[str, list[int]]) -> dict[str, list[dict[str, object]]]:
    """Rows of a text, and of random pictures with a text."""
    import numpy as np
    from PIL import Image

    def picture(seed: int) -> Image.Image:
        return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))

    items = {
        "anchor": lambda at: {"text": f"the picture number {at}"},
        "positive": lambda at: {"image": picture(at), "text": f"number {at}"},
        "negative": lambda at: {"image": picture(-at - 1 + 10**6)},
    }
    return {name: [items[name](at) for at in numbers] for name, numbers in batch.items()}


if __name__ == "__main__":
    main()
