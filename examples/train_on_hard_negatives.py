"""Train on mined negatives: every query sees candidates that the model takes for its answer.

    python examples/train_on_hard_negatives.py MODEL FOLDER TABLES OUT
    python examples/train_on_hard_negatives.py MODEL FOLDER TABLES OUT --remine-every-epochs 1

FOLDER is in M-BEIR's layout, as prepare_pairs.py writes it, TABLES what mine_hard_negatives.py wrote for it. What is
hard changes as the model learns; ``--remine-every-epochs`` mines anew with the model as it has become.
"""

import argparse
from functools import partial
from pathlib import Path

from umarvel_hf import (
    BlockBatchSampler,
    Choice,
    Encoder,
    Filters,
    HardNegativeMining,
    MBeir,
    MBeirRows,
    NegativeTable,
    RetrievalEvaluator,
    Strategy,
    TrainingRows,
    UMarvelTrainer,
    UMarvelTrainingArguments,
    load,
    mine_benchmark,
)

SEED = 0

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model", help="folder or Hub id of a checkpoint")
parser.add_argument("folder", type=Path, help="data in M-BEIR's layout")
parser.add_argument("tables", type=Path, help="folder of mined lists")
parser.add_argument("out", type=Path, help="folder to write")
parser.add_argument("--pool", choices=["local", "union"], default="union", help="whose lists (default: %(default)s)")
parser.add_argument("--negatives", type=int, default=4, help="of every query (default: %(default)s)")
parser.add_argument("--window", type=int, nargs=2, default=(2, 50), help="of the list, where they are drawn from")
parser.add_argument("--margin", type=float, help="how far below the best right answer a negative must score")
parser.add_argument("--remine-every-epochs", type=int, help="0 or not given: never")
parser.add_argument("--epochs", type=int, default=1)
parser.add_argument("--batch-size", type=int, default=32)
parser.add_argument("--mini-batch-size", type=int, default=8, help="rows in memory at a time; changes no gradient")
parser.add_argument("--learning-rate", type=float, default=1e-5)
arguments = parser.parse_args()
pool = arguments.pool

# 1. Load. Weights are trained in float32: steps this small are lost in bfloat16.
model, benchmark = load(arguments.model, model_kwargs={"dtype": "float32"}), MBeir(arguments.folder)
evaluator = RetrievalEvaluator(benchmark, split="val", write_csv=False)
before = evaluator(model)

# 2. Data: a query, one of its right answers and its negatives, all drawn anew in every epoch
table = NegativeTable.open(arguments.tables / f"{pool}.parquet")
strategy = Strategy("window", arguments.negatives, tuple(arguments.window))
choice = Choice({pool: strategy}, Filters(absolute_margin=arguments.margin))
rows = TrainingRows([MBeirRows(benchmark, tables={pool: table}, choice=choice)], seed=SEED)
callbacks = [rows]


def remine(model: Encoder, folder: Path) -> dict[str, NegativeTable]:
    return mine_benchmark(model, benchmark, folder, pools=[pool], depth=int(table.facts["depth"]))


if every := arguments.remine_every_epochs:
    callbacks.append(HardNegativeMining(remine, rows, arguments.out / "mined", every_epochs=every))

# 3. Train by InfoNCE: negatives of a query are its own, those of the other rows, and the others' right answers.
trainer = UMarvelTrainer(
    model=model,
    args=UMarvelTrainingArguments(
        output_dir=str(arguments.out / "checkpoints"),
        batch_sampler=partial(BlockBatchSampler, groups=rows.groups, block_size=1),
        num_train_epochs=arguments.epochs,
        per_device_train_batch_size=arguments.batch_size,
        mini_batch_size=arguments.mini_batch_size,
        learning_rate=arguments.learning_rate,
        bf16=model.device.type == "cuda",
        dataloader_pin_memory=model.device.type == "cuda",
        logging_steps=10,
        report_to="none",
        seed=SEED,
    ),
    train_dataset=rows.dataset,
    callbacks=callbacks,
)
trainer.train()

# 4. Save and measure
model.save_pretrained(str(arguments.out / "model"))
after = evaluator(model)
for name in ("local", "union"):
    print(f"R@1 in the {name} pool: {before[f'{name}_hit@1']:.1%} before, {after[f'{name}_hit@1']:.1%} after")
