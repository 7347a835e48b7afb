"""What encoding does and does not do, and what the other way would have cost on this machine.

    python benchmarks/choices.py
    python benchmarks/choices.py --items 24 --repetitions 2

Every question is one table, of ways to do the same work that take turns:

- how many tokens a batch should hold;
- whether to pad batches of like lengths or to pack sequences, whose attention on a CPU is a loop over them;
- whether to compile: seconds of the first pass, which compiles for the shapes it meets, and of those after it;
- whether to process pictures ahead in threads or in processes, beside a model that waits.

The model and the items are those of `encode.py`.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from copy import copy, deepcopy
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from threading import local
from typing import Any

from umarvel_hf._torchvision import ensure_torchvision

ensure_torchvision()
import torch
from measure import interleaved, machine, ratio, table
from sentence_transformers import SentenceTransformer
from workload import Draw, write_checkpoint

from umarvel_hf.encoding import TOKENS_ON_A_CPU, encode, load
from umarvel_hf.packing import embed_packed, packed_attention
from umarvel_hf.planning import TokenCounter, plan
from umarvel_hf.vision import patches_as_products

own = local()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=96, help="default: %(default)s")
    parser.add_argument("--repetitions", type=int, default=5, help="default: %(default)s")
    arguments = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write_checkpoint(Path(folder) / "model")
        model, items = load(checkpoint, device="cpu"), Draw().mix(arguments.items)
        for tell in (budgets, padding, compiling):
            print()
            print(tell(model, items, arguments.repetitions))
        print()
        print(processing(checkpoint, arguments.items, arguments.repetitions))


def budgets(model: SentenceTransformer, items: list[Any], repetitions: int) -> str:
    sizes = (256, 512, 1_024, 2_048, 4_096, 16_384)
    ways = {f"{size:,} tokens": partial(encode, model, items, batch_tokens=size) for size in sizes}
    return compared("batch", ways, repetitions)


def padding(model: SentenceTransformer, items: list[Any], repetitions: int) -> str:
    inner, counts = model[0].model, TokenCounter(model[0]).count(items).counts
    batches = {
        packed: [
            model.preprocess([items[at] for at in batch]) for batch in plan(counts, TOKENS_ON_A_CPU, packed=packed)
        ]
        for packed in (False, True)
    }

    @torch.inference_mode()
    def padded() -> None:
        for features in batches[False]:
            model(dict(features))

    @torch.inference_mode()
    def packed() -> None:
        with packed_attention(inner):
            for features in batches[True]:
                embed_packed(inner, features)

    return compared("execution", {"padded": padded, "packed": packed}, repetitions)


def compiling(model: SentenceTransformer, items: list[Any], repetitions: int) -> str:
    usual, counts = model[0].model.vlm, TokenCounter(model[0]).count(items).counts
    batches = [model.preprocess([items[at] for at in batch]) for batch in plan(counts, TOKENS_ON_A_CPU)]
    compiled = torch.compile(usual, dynamic=True)

    @torch.inference_mode()
    def run(vlm: Any) -> None:
        model[0].model.vlm = vlm
        try:
            for features in batches:
                model(dict(features))
        finally:
            model[0].model.vlm = usual

    with patches_as_products(usual):
        started = time.perf_counter()
        try:
            run(compiled)
        except Exception as error:  # no compiler on this machine, or a model that it does not take
            return f"compiling failed: {type(error).__name__}: {str(error).splitlines()[0][:200]}"
        first = f"{time.perf_counter() - started:.0f} s"
        ways = {"as it is": partial(run, usual), f"compiled (first pass {first})": partial(run, compiled)}
        return compared("model", ways, repetitions)


def processing(checkpoint: Path, count: int, repetitions: int) -> str:
    draw = Draw()
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{at}.jpg" for at in range(count)]
        for path in paths:
            draw.picture((1_280, 960)).save(path)
        batches = [paths[start : start + 4] for start in range(0, count, 4)]
        most = os.cpu_count() or 1
        pools: dict[str, Executor] = {
            f"{kind}: {number}": pool(number, checkpoint)
            for kind, pool in (("threads", threads), ("processes", processes))
            for number in sorted({1, most})
        }
        told = compared(
            "1,280 × 960 JPEG", {name: partial(over, pool, batches) for name, pool in pools.items()}, repetitions
        )
        for pool in pools.values():
            pool.shutdown()
    return told


def threads(number: int, checkpoint: Path) -> Executor:
    module = load(checkpoint, device="cpu")[0]
    return ThreadPoolExecutor(number, initializer=become, initargs=(module,))


def processes(number: int, checkpoint: Path) -> Executor:
    return ProcessPoolExecutor(number, get_context("spawn"), initializer=become_of, initargs=(checkpoint,))


def become(module: Any) -> None:
    torch.set_num_threads(1)
    own.module = copy(module)
    own.module.processor = deepcopy(module.processor)


def become_of(checkpoint: Path) -> None:
    become(load(checkpoint, device="cpu")[0])


def process(batch: Sequence[Path]) -> dict[str, Any]:
    features: dict[str, Any] = own.module.preprocess(batch)
    return features


def over(pool: Executor, batches: Sequence[Sequence[Path]]) -> None:
    for _ in pool.map(process, batches):
        pass


def compared(what: str, ways: dict[str, Callable[[], Any]], repetitions: int) -> str:
    """A table of ways, with how many times as fast as the first each is."""
    seconds, _ = interleaved(ways, repetitions)
    first = seconds[next(iter(ways))]
    rows = [
        [name, f"{statistics.median(one):.2f} ({min(one):.2f}–{max(one):.2f})", ratio(first, one)]
        for name, one in seconds.items()
    ]
    return table([what, "seconds", "first ÷ this"], rows)


if __name__ == "__main__":
    main()
