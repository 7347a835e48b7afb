"""How the memory of a training step grows with the batch, with gradient caching and without.

    python benchmarks/step_memory.py
    python benchmarks/step_memory.py --rows 32 64 --plain 32

Every measurement is a process of its own that takes two optimiser steps of InfoNCE with one hard negative, in mixed
precision on the CPU, on a Qwen2-VL of 9 million parameters with random weights and random pictures of 64 × 64 pixels
beside a text, and reports its peak resident memory. The floor is such a process with a batch of one mini-batch.

With caching only one mini-batch of activations is held, but all of a batch's inputs, and accelerate fetches the next
batch ahead: `inputs` is what these two take, a picture of 64 × 64 pixels 49 kB and one of 224 × 224 pixels 0.6 MB. They
grow with the batch whatever a loss does; `rest` is the peak without them, to that of the first batch size.
"""

import argparse
import tempfile
from pathlib import Path

from memory import alone, peak_rss

CHUNK = 8
SIDE = 64  # as in the embedded benchmark


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[64, 256, 1024], help="batch sizes with caching")
    parser.add_argument("--plain", type=int, nargs="*", default=[8, 32, 64], help="batch sizes without")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = alone(write_tiny_checkpoint, Path(folder) / "model")
        floor, _ = alone(peak_of_steps, checkpoint, CHUNK, CHUNK)
        print(
            f"{'caching':>12} {'rows':>6} {'peak':>10} {'above floor':>12} {'inputs':>10} {'to first':>9} {'rest':>6}"
        )
        for name, chunk, sizes in ((f"chunks of {CHUNK}", CHUNK, arguments.rows), ("none", None, arguments.plain)):
            first = None
            for rows in sizes:
                peak, inputs = alone(peak_of_steps, checkpoint, rows, chunk)
                first = first or (peak, peak - inputs)
                print(
                    f"{name:>12} {rows:>6,} {peak / 1e6:>7,.0f} MB {(peak - floor) / 1e6:>9,.0f} MB "
                    f"{inputs / 1e6:>7,.0f} MB {peak / first[0]:>9.2f} {(peak - inputs) / first[1]:>6.2f}"
                )


def write_tiny_checkpoint(out: Path) -> Path:
    """A tiny base of the recipes, larger: six layers of 256 over pictures of 16 visual tokens."""
    from umarvel_hf.checkpoint import new_model
    from umarvel_hf.data import MBeir
    from umarvel_hf.emoji import benchmark_dir
    from umarvel_hf.emoji.base import BaseSize, build_base

    size = BaseSize(hidden=256, layers=6, intermediate=768, vision_hidden=256, patch=8, image_side=SIDE)
    return new_model(build_base(MBeir(benchmark_dir()), out.with_name("base"), size, seed=0), out)


def peak_of_steps(checkpoint: Path, rows: int, chunk: int | None) -> tuple[int, int]:
    """Peak resident bytes of two steps, and bytes of two batches of inputs."""
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
            bf16=True, save_strategy="no", report_to="none", disable_tqdm=True,
        )  # fmt: skip
        model = load(checkpoint, device="cpu")
        trainer = UMarvelTrainer(model=model, args=arguments, train_dataset=numbers)
        few = trainer.data_collator([numbers[at] for at in range(CHUNK)])
        trainer.train()
    inputs = sum(value.nbytes for value in few.values() if isinstance(value, torch.Tensor)) // CHUNK * rows * 2
    return peak_rss(), inputs


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
