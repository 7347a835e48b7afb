"""Teach the embedder what the re-ranker knows: it learns to order a query's candidates as the re-ranker does.

    python examples/distill_reranker.py MODEL RERANKER FOLDER TABLE OUT

FOLDER is in M-BEIR's layout, as prepare_pairs.py writes it; TABLE holds lists that MODEL mined on it
(mine_hard_negatives.py); RERANKER comes from train_reranker.py. The teacher's score of a candidate is the mean of its
cosine and of the re-ranker's P(Yes), which has a weight, fitted on the validation split; measured is on the test split.
"""

import argparse
from functools import partial
from pathlib import Path

from umarvel_hf import (
    BlockBatchSampler,
    DistillKL,
    MBeir,
    NegativeTable,
    RetrievalEvaluator,
    TeacherLists,
    TrainingRows,
    UMarvelTrainer,
    UMarvelTrainingArguments,
    fit_fusion,
    load,
    load_reranker,
    score_table,
)

JUDGED = 20  # candidates of a validation query; more than the five that R@5 counts, or no weight would matter
SEED = 0

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model", help="folder or Hub id of a checkpoint")
parser.add_argument("reranker", help="folder or Hub id of a re-ranker")
parser.add_argument("folder", type=Path, help="data in M-BEIR's layout")
parser.add_argument("table", type=Path, help="mined lists, a Parquet file")
parser.add_argument("out", type=Path, help="folder to write")
parser.add_argument("--top", type=int, default=10, help="candidates of a query that the teacher judges")
parser.add_argument("--epochs", type=float, default=1)
parser.add_argument("--batch-size", type=int, default=16, help="queries, each with its own candidates")
parser.add_argument("--mini-batch-size", type=int, default=8, help="rows in memory at a time; changes no gradient")
parser.add_argument("--learning-rate", type=float, default=5e-6)
arguments = parser.parse_args()

# 1. Load. Weights are trained in float32: steps this small are lost in bfloat16.
model, reranker = load(arguments.model, model_kwargs={"dtype": "float32"}), load_reranker(arguments.reranker)
benchmark = MBeir(arguments.folder)
test = RetrievalEvaluator(benchmark, split="test", write_csv=False)
before = test(model)

# 2. The teacher: how much the re-ranker's word should weigh, then its word on every list
part = RetrievalEvaluator(benchmark, split="val").slice  # 50 queries of every task
fusion = fit_fusion(model, reranker, part, top=JUDGED)
fusion.save(arguments.out / "fusion.json")
without, best = fusion.curve["0.0"], max(fusion.curve.values())
print(f"weight {fusion.weight:g}; R@5 in validation: {without:.1%} without the re-ranker, {best:.1%} with it")
table, out = NegativeTable.open(arguments.table), arguments.out / "scored.parquet"
scored = score_table(table, reranker, benchmark, top=arguments.top, weight=fusion.weight, out=out)

# 3. Train: the model's distribution over a query's candidates should be the teacher's.
rows = TrainingRows([TeacherLists(benchmark, scored, top=arguments.top, keep_positive=True)], seed=SEED)
trainer = UMarvelTrainer(
    model=model,
    args=UMarvelTrainingArguments(
        output_dir=str(arguments.out / "checkpoints"),
        batch_sampler=partial(BlockBatchSampler, groups=rows.groups, block_size=1),
        num_train_epochs=arguments.epochs,
        per_device_train_batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        bf16=model.device.type == "cuda",
        dataloader_pin_memory=model.device.type == "cuda",
        logging_steps=10,
        report_to="none",
        seed=SEED,
    ),
    train_dataset=rows.dataset,
    loss=DistillKL(model, mini_batch_size=arguments.mini_batch_size),
    callbacks=[rows],
)
trainer.train()

# 4. Save and measure
model.save_pretrained(str(arguments.out / "model"))
after = test(model)
print(f"R@1 in the test: {before['local_hit@1']:.1%} before, {after['local_hit@1']:.1%} after")
