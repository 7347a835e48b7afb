"""Three contrastive stages in a row, from what is plenty to what is asked for: texts, captions, instructions.

    python examples/progressive_transition.py MODEL OUT --texts nli.csv --captions captions.jsonl --data FOLDER

The columns of nli.csv are ``sent0, sent1, hard_neg``: a sentence, what follows from it, what contradicts it. Those of
captions.jsonl are ``text`` and ``image``. FOLDER is in M-BEIR's layout, as prepare_pairs.py writes it; it should hold
out what the captions show. OUT gets a checkpoint after every stage.
"""

import argparse
from functools import partial
from pathlib import Path

from umarvel_hf import (
    BlockBatchSampler,
    InfoNCE,
    MBeir,
    MBeirRows,
    Pairs,
    RetrievalEvaluator,
    TrainingRows,
    UMarvelTrainer,
    UMarvelTrainingArguments,
    load,
)

SEED = 0

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model", help="folder or Hub id of a checkpoint")
parser.add_argument("out", type=Path, help="folder to write")
parser.add_argument("--texts", type=Path, required=True, help="CSV file with the columns sent0, sent1, hard_neg")
parser.add_argument("--captions", type=Path, required=True, help="CSV or JSON-lines file with the columns text, image")
parser.add_argument("--data", type=Path, required=True, help="folder in M-BEIR's layout")
parser.add_argument("--epochs", type=float, default=1, help="of every stage")
parser.add_argument("--batch-size", type=int, default=64, help="the other rows of a batch are the negatives")
parser.add_argument("--mini-batch-size", type=int, default=8, help="rows in memory at a time; changes no gradient")
parser.add_argument("--learning-rate", type=float, default=2e-5)
parser.add_argument("--temperature-learning-rate", type=float, default=1e-3)
arguments = parser.parse_args()

# 1. Data. Every source gives rows of a query, a positive and perhaps a hard negative, with ids of what is the same.
benchmark = MBeir(arguments.data)
stages = {
    "1-texts": Pairs.nli(arguments.texts, negatives=True),
    "2-captions": Pairs.captions(arguments.captions),
    "3-instructions": MBeirRows(benchmark),
}
evaluator = RetrievalEvaluator(benchmark, split="val", pools=["local"], write_csv=False)

# 2. Load. Weights are trained in float32: steps this small are lost in bfloat16.
model = load(arguments.model, model_kwargs={"dtype": "float32"})
print(f"before: R@1 {evaluator(model)['local_hit@1']:.1%}")

# 3. Train stage by stage, each from where the last one ended
for name, source in stages.items():
    rows = TrainingRows([source], seed=SEED)
    trainer = UMarvelTrainer(
        model=model,
        args=UMarvelTrainingArguments(
            output_dir=str(arguments.out / name / "checkpoints"),
            # Half a batch of one task each: its rows are the harder negatives, and the other's tell the tasks apart.
            batch_sampler=partial(BlockBatchSampler, groups=rows.groups, block_size=arguments.batch_size // 2),
            num_train_epochs=arguments.epochs,
            per_device_train_batch_size=arguments.batch_size,
            learning_rate=arguments.learning_rate,
            temperature_learning_rate=arguments.temperature_learning_rate,
            bf16=model.device.type == "cuda",
            dataloader_pin_memory=model.device.type == "cuda",
            logging_steps=10,
            report_to="none",
            seed=SEED,
        ),
        train_dataset=rows.dataset,
        # Captions look for pictures, and pictures for captions.
        loss=InfoNCE(model, mini_batch_size=arguments.mini_batch_size, symmetric=name == "2-captions"),
        callbacks=[rows],
    )
    trainer.train()
    model.save_pretrained(str(arguments.out / name / "model"))
    print(f"{name}: R@1 {evaluator(model)['local_hit@1']:.1%}")
