"""Train a re-ranker: a model that reads a query and a candidate together and says whether the one answers the other.

    python examples/train_reranker.py BASE FOLDER TABLE OUT

BASE is any vision-language model, or a U-MARVEL checkpoint, which then begins with what it knows. FOLDER is in M-BEIR's
layout, as prepare_pairs.py writes it, TABLE a file that mine_hard_negatives.py wrote for it, such as
``mined/local.parquet``. Some lists are held out to measure by.
"""

import argparse
import random
from pathlib import Path

import numpy as np
from sentence_transformers import CrossEncoder
from sentence_transformers.cross_encoder import CrossEncoderTrainingArguments

from umarvel_hf import Judgements, MBeir, NegativeTable, load_reranker, new_reranker, score_table, train_reranker

HELD_OUT, TOP = 0.2, 10  # of the lists; of their candidates
SEED = 0

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("base", help="folder or Hub id of a vision-language model, or of a checkpoint")
parser.add_argument("folder", type=Path, help="data in M-BEIR's layout")
parser.add_argument("table", type=Path, help="mined lists, a Parquet file")
parser.add_argument("out", type=Path, help="folder to write, empty")
parser.add_argument("--epochs", type=float, default=1)
parser.add_argument("--batch-size", type=int, default=16, help="queries; each with a right answer and a mined one")
parser.add_argument("--learning-rate", type=float, default=1e-5)
arguments = parser.parse_args()

# 1. Data
benchmark, table = MBeir(arguments.folder), NegativeTable.open(arguments.table)
lists = random.Random(SEED).sample(list(table), len(table))
count = max(1, round(HELD_OUT * len(lists)))
held_out = NegativeTable.write(arguments.out / "held-out.parquet", lists[:count], table.facts)
learned = NegativeTable.write(arguments.out / "learned.parquet", lists[count:], table.facts)


def right_share(reranker: Path, name: str) -> float:
    """Of all held-out pairs of a right answer and a mined candidate, how many are judged in this order."""
    out = arguments.out / f"held-out-{name}.parquet"
    judged = score_table(held_out, load_reranker(reranker), benchmark, top=TOP, weight=1.0, out=out)
    return float(np.mean([(one.positive_answers[:, None] > one.answers).mean() for one in judged]))


# 2. Make a re-ranker of the base: its answer is the probability of Yes against No.
start = new_reranker(arguments.base, arguments.out / "start")
before = right_share(start, "before")

# 3. Train. Weights are trained in float32: steps this small are lost in bfloat16.
model = CrossEncoder(str(start), model_kwargs={"dtype": "float32"})
settings = CrossEncoderTrainingArguments(
    output_dir=str(arguments.out / "checkpoints"),
    num_train_epochs=arguments.epochs,
    per_device_train_batch_size=arguments.batch_size,
    learning_rate=arguments.learning_rate,
    bf16=model.device.type == "cuda",
    dataloader_pin_memory=model.device.type == "cuda",
    logging_steps=10,
    report_to="none",
    seed=SEED,
)
train_reranker(model, Judgements(benchmark, learned, model.tokenizer, seed=SEED), settings)

# 4. Save and measure
model.save_pretrained(str(arguments.out / "model"))
after = right_share(arguments.out / "model", "after")
print(f"right answer above a mined one, {len(held_out):,} held-out lists: {before:.1%} before, {after:.1%} after")
