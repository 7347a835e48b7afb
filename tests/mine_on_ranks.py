"""A training split to mine, and mining as one of several processes: python mine_on_ranks.py DATA OUT."""

import json
import sys
from pathlib import Path

import torch.distributed as dist
from accelerate import PartialState

from colours import write_lines
from mbeir import DrawnVectors, write_mbeir
from umarvel_hf.data import MBeir
from umarvel_hf.evaluation.results import MBEIR_TASKS
from umarvel_hf.mining import mine_benchmark

MADE_BY = {"encoder": "drawn"}


def write_training_split(root: Path) -> Path:
    """All 16 configurations with a training split: each test query, the third of every task once more, and copies of
    candidates, some of them right answers, under other dids and in another data set.
    """
    write_mbeir(root)
    folder = root / "cand_pool/global"
    pool = [json.loads(line) for line in (folder / "mbeir_union_test_cand_pool.jsonl").read_text().splitlines()]
    copies = [one | {"did": f"5:9{at:05}"} for at, one in enumerate(pool) if at % 7 == 0]
    write_lines(folder / "mbeir_union_train_cand_pool.jsonl", [*pool, *copies])
    queries = []
    for task in MBEIR_TASKS:
        lines = (root / f"query/test/mbeir_{task.name}_test.jsonl").read_text().splitlines()
        queries += [*lines, lines[2]]
    write_lines(root / "query/union_train/mbeir_union_up_train.jsonl", queries)
    return root


if __name__ == "__main__":
    PartialState(cpu=True)
    encoder, out = DrawnVectors(), Path(sys.argv[2])
    mine_benchmark(encoder, MBeir(sys.argv[1]), out, depth=20, seed=4, made_by=MADE_BY)
    (out / f"encoded-{dist.get_rank()}").write_text(str(len(encoder.encoded)))
    dist.destroy_process_group()
