"""Short trainings, alone or as one rank of several: python train_on_ranks.py CHECKPOINT PICTURE OUT ROWS_A_RANK."""

import json
import os
import sys
from functools import partial
from pathlib import Path

from umarvel_hf._torchvision import ensure_torchvision

ensure_torchvision()

import torch
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import save_file
from sentence_transformers.base.sampler import DefaultBatchSampler
from torch.distributed.tensor import DTensor
from torch.utils.data import SequentialSampler

from umarvel_hf.encoding import load
from umarvel_hf.messages import chat
from umarvel_hf.trainer.arguments import UMarvelTrainingArguments
from umarvel_hf.trainer.losses import DistillKL, InfoNCE
from umarvel_hf.trainer.trainer import UMarvelTrainer

WORDS = ("dog", "bench", "woman", "red", "green", "circle", "square", "house")
WORDS += ("tree", "moon", "sun", "star", "cat", "bird", "fish", "lamp")
LAYERS = r".*layers\.\d+\.(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)"
# Of every eight rows that make a step, the first four are the first rank's. In the first step it sees no picture; in
# the second it has one among its positives only, the other rank one among its queries only.
PICTURED = {"query": (4, 13), "positive": (6, 9)}
COLUMNS = ("query", "positive", "negative_1", "negative_2")

# job: the loss, its number of columns, whether an adapter is trained, rows embedded at a time
JOBS = {
    "pairs": (partial(InfoNCE, symmetric=True), 2, False, None),
    "pairs-lora": (InfoNCE, 2, True, 3),
    "negatives": (InfoNCE, 4, False, 3),
    "negatives-lora": (InfoNCE, 4, True, None),
    "distilled": (partial(DistillKL, infonce_weight=0.2), 3, False, None),
    "distilled-lora": (DistillKL, 3, True, 3),
}


def table(columns: tuple[str, ...], picture: str, *, distil: bool) -> Dataset:
    """Sixteen rows of texts and some pictures, with ids, or with a teacher's scores."""
    rows: dict[str, list] = {name: [] for name in (*columns, "label")}
    for at, word in enumerate(WORDS):
        for number, name in enumerate(columns):
            text = f"{('a', 'one', 'no', 'some')[number]} {word} {WORDS[at - number]}"
            rows[name].append(chat({"image": picture, "text": text} if at in PICTURED.get(name, ()) else text))
        scores = [0.1 * ((at + 3 * number) % 16) for number in range(1, len(columns))]
        dids = [100 + (at + 3 * number) % 13 for number in range(1, len(columns))]
        rows["label"].append([scores, [1.0, *[0.0] * (len(scores) - 1)]] if distil else [at // 2, *dids, 105, -1])
    return Dataset.from_dict(rows)


def in_order(dataset: Dataset, batch_size: int, drop_last: bool, **_: object) -> DefaultBatchSampler:
    """Batches of the rows as they stand."""
    return DefaultBatchSampler(SequentialSampler(dataset), batch_size=batch_size, drop_last=drop_last)


def train(job: str, checkpoint: str | Path, picture: str, out: Path, rows_a_rank: int) -> tuple[dict, dict]:
    """Five steps of a job: the parameters after them, and what was logged last."""
    make_loss, columns, adapted, mini_batch_size = JOBS[job]
    model = load(checkpoint)
    if adapted:
        torch.manual_seed(0)
        lora = {"r": 4, "target_modules": LAYERS, "modules_to_save": ["similarity"], "init_lora_weights": False}
        model.add_adapter(LoraConfig(**lora, task_type="FEATURE_EXTRACTION"))
    arguments = UMarvelTrainingArguments(
        str(out / "run"),
        per_device_train_batch_size=rows_a_rank,
        max_steps=5,
        learning_rate=0.01,
        temperature_learning_rate=0.05,
        optim="sgd",  # its steps are as large as the gradients are
        lr_scheduler_type="constant",
        max_grad_norm=0,
        batch_sampler=in_order,
        logging_steps=5,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    loss = make_loss(model, mini_batch_size=mini_batch_size)
    rows = table(COLUMNS[:columns], picture, distil=isinstance(loss, DistillKL))
    trainer = UMarvelTrainer(model=model, args=arguments, train_dataset=rows, loss=loss)
    trainer.train()
    return {name: whole(parameter) for name, parameter in model.named_parameters()}, trainer.state.log_history[0]


def whole(parameter: torch.Tensor) -> torch.Tensor:
    """A copy of a parameter, put together where ranks hold parts of it."""
    return (parameter.full_tensor() if isinstance(parameter, DTensor) else parameter).detach().clone()


if __name__ == "__main__":
    torch.set_num_threads(1)
    checkpoint, picture, out, rows_a_rank = sys.argv[1:]
    for job in JOBS:
        parameters, logged = train(job, checkpoint, picture, Path(out), int(rows_a_rank))
        save_file(parameters, f"{out}/{job}-{os.environ['RANK']}.safetensors")
        Path(f"{out}/{job}-{os.environ['RANK']}.json").write_text(json.dumps(logged))
    torch.distributed.destroy_process_group()
