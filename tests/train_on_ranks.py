"""A short training, alone or as one rank of several: python train_on_ranks.py CHECKPOINT OUT ROWS_A_RANK."""

import os
import sys
from pathlib import Path

from umarvel_hf._torchvision import ensure_torchvision

ensure_torchvision()

import torch
from datasets import Dataset
from safetensors.torch import save_file

from umarvel_hf.encoding import load
from umarvel_hf.trainer.arguments import UMarvelTrainingArguments
from umarvel_hf.trainer.trainer import UMarvelTrainer

WORDS = ("dog", "bench", "woman", "red", "green", "circle", "square", "house")
WORDS += ("tree", "moon", "sun", "star", "cat", "bird", "fish", "lamp")


def train(checkpoint: str | Path, out: Path, rows_a_rank: int) -> dict[str, dict[str, torch.Tensor]]:
    """Two steps, without and with gradient caching; returns the parameters after each."""
    rows = Dataset.from_dict({
        "query": [f"a {word}" for word in WORDS],
        "positive": [f"one {word} on a {other}" for word, other in zip(WORDS, WORDS[::-1], strict=True)],
        "label": [[at, 100 + at % 13] for at in range(len(WORDS))],
    })  # fmt: skip
    trained = {}
    for name, mini_batch_size in (("whole", None), ("cached", 3)):
        model = load(checkpoint)
        arguments = UMarvelTrainingArguments(
            str(out / "run"),
            per_device_train_batch_size=rows_a_rank,
            mini_batch_size=mini_batch_size,
            max_steps=2,
            learning_rate=0.05,
            temperature_learning_rate=0.5,
            optim="sgd",  # its steps are as large as the gradients are
            lr_scheduler_type="constant",
            max_grad_norm=0,
            report_to="none",
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
        )
        UMarvelTrainer(model=model, args=arguments, train_dataset=rows).train()
        trained[name] = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    return trained


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name, parameters in train(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])).items():
        save_file(parameters, f"{sys.argv[2]}/{name}-{os.environ['RANK']}.safetensors")
    torch.distributed.destroy_process_group()
