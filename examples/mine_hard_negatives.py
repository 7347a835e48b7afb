"""Mine hard negatives: for every training query, what the model takes for an answer and is none.

    python examples/mine_hard_negatives.py MODEL FOLDER TABLES

FOLDER is in M-BEIR's layout, as prepare_pairs.py writes it. TABLES gets ``local.parquet``, lists from the pool of the
query's own task, and ``union.parquet``, from everything. Stopped, the same command goes on. Look at some lists before
you train on them: what stands first is often right and only not listed.
"""

import argparse
import random
from pathlib import Path

import numpy as np

from umarvel_hf import MBeir, load, mine_benchmark

SEED = 0

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model", help="folder or Hub id of a checkpoint")
parser.add_argument("folder", type=Path, help="data in M-BEIR's layout")
parser.add_argument("out", type=Path, help="folder to write")
parser.add_argument("--depth", type=int, default=100, help="candidates of a list (default: %(default)s)")
parser.add_argument("--batch-tokens", type=int, help="tokens encoded at a time (default: what suits the device)")
parser.add_argument("--show", type=int, default=3, help="lists to look at (default: %(default)s)")
arguments = parser.parse_args()

# 1. Load
model, benchmark = load(arguments.model), MBeir(arguments.folder)

# 2. Mine: everything is encoded once, and every query ranks each of the pools.
options = {"depth": arguments.depth, "seed": SEED, "batch_tokens": arguments.batch_tokens, "show_progress": True}
tables = mine_benchmark(model, benchmark, arguments.out, **options)

# 3. Look: how much is there to learn, and are these really no answers?
queries, pool = {query.qid: query for query in benchmark.train_queries()}, benchmark.union_pool("train")
for name, table in tables.items():
    margins = np.array([mined.positive_scores[0] - mined.scores[0] for mined in table if mined.dids])
    print(f"{name}: {len(table):,} lists in {table.path}")
    print(f"the best candidate scores above the best right answer in {(margins < 0).mean():.1%} of them")
    for qid in random.Random(SEED).sample(table.qids, min(arguments.show, len(table))):
        mined = table[qid]
        right = zip("+++", mined.positives, mined.positive_scores, strict=False)
        found = zip("-----", mined.dids, mined.scores, strict=False)
        print(f"  query {qid}  {queries[qid].item}")
        for sign, did, score in (*right, *found):
            print(f"    {sign} {score:.3f}  {did}  {pool[did].item}")
