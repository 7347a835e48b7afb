"""Fine-tune a checkpoint on your own pairs of a text and a picture, and see how many more of them it finds.

    python examples/finetune_on_pairs.py MODEL pairs.csv OUT
    python examples/finetune_on_pairs.py MODEL pairs.jsonl OUT --lora --learning-rate 1e-4

The file has two columns: ``text``, and ``image``, a path relative to the file. Some pairs are held out to measure by.
"""

import argparse
from pathlib import Path

import numpy as np
from datasets import Dataset, load_dataset

from umarvel_hf import Encoder, UMarvelTrainer, UMarvelTrainingArguments, load

INSTRUCTION = "Find an image that matches the given text."
HELD_OUT = 0.1
SEED = 0
LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear", "modules_to_save": ["similarity"]}

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model", help="folder or Hub id of a checkpoint")
parser.add_argument("pairs", type=Path, help="CSV or JSON-lines file with the columns text and image")
parser.add_argument("out", type=Path, help="folder to write")
parser.add_argument("--epochs", type=float, default=3)
parser.add_argument("--batch-size", type=int, default=64, help="the other pairs of a batch are the negatives")
parser.add_argument("--mini-batch-size", type=int, default=8, help="pairs in memory at a time; changes no gradient")
parser.add_argument("--learning-rate", type=float, default=2e-5)
parser.add_argument("--temperature-learning-rate", type=float, default=1e-3)
parser.add_argument("--lora", action="store_true", help="train a small adapter, which is loaded on top of MODEL")
arguments = parser.parse_args()


def recall_at_1(model: Encoder, pairs: Dataset) -> float:
    """Share of the texts whose first picture has this text."""
    texts = np.array(pairs["text"])
    queries = model.encode(list(texts), prompt=INSTRUCTION)
    pictures = model.encode(list(pairs["image"]))
    return float((texts[(queries @ pictures.T).argmax(axis=1)] == texts).mean())


# 1. Load. Weights are trained in float32: steps this small are lost in bfloat16.
model = load(arguments.model, model_kwargs={"dtype": "float32"})

# 2. Data: queries, positives, and their ids, so that pairs with the same text or picture are no negatives of each other
kind = "csv" if arguments.pairs.suffix == ".csv" else "json"
table = load_dataset(kind, data_files=str(arguments.pairs), split="train")
if missing := {"text", "image"} - set(table.column_names):
    parser.error(f"{arguments.pairs} has columns {table.column_names}, {' and '.join(sorted(missing))} not among them")
for count, row in enumerate(table, start=1):
    if not row["text"] or not row["image"] or not (arguments.pairs.parent / row["image"]).is_file():
        parser.error(f"pair {count} of {arguments.pairs} is {row}; it needs a text and a picture that is there")
text_ids = {text: number for number, text in enumerate(dict.fromkeys(table["text"]))}
image_ids = {image: number for number, image in enumerate(dict.fromkeys(table["image"]))}
pairs = Dataset.from_dict(
    {
        "text": table["text"],
        "image": [{"image": str(arguments.pairs.parent / image)} for image in table["image"]],
        "label": [[text_ids[row["text"]], image_ids[row["image"]]] for row in table],
    }
).train_test_split(test_size=HELD_OUT, seed=SEED)
before = recall_at_1(model, pairs["test"])

# 3. Train, by InfoNCE with a learned temperature; only mini_batch_size pairs are in memory at a time
if arguments.lora:
    from peft import LoraConfig

    model.add_adapter(LoraConfig(**LORA))
trainer = UMarvelTrainer(
    model=model,
    args=UMarvelTrainingArguments(
        output_dir=str(arguments.out / "checkpoints"),
        prompts={"text": INSTRUCTION},
        num_train_epochs=arguments.epochs,
        per_device_train_batch_size=arguments.batch_size,
        mini_batch_size=arguments.mini_batch_size,
        learning_rate=arguments.learning_rate,
        temperature_learning_rate=arguments.temperature_learning_rate,
        dataloader_pin_memory=model.device.type == "cuda",
        logging_steps=10,
        report_to="none",
        seed=SEED,
    ),
    train_dataset=pairs["train"],
)
trainer.train()

# 4. Save and load
model.save_pretrained(str(arguments.out / "model"))
trained = load(str(arguments.out / "model"))
after = recall_at_1(trained, pairs["test"])
print(f"R@1 on {len(pairs['test']):,} held-out pairs: {before:.1%} before, {after:.1%} after")
print(f"the fine-tuned model is {arguments.out / 'model'}")
