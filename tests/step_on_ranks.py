"""Two steps as one rank of several, as `accelerate launch` starts it: step_on_ranks.py CHECKPOINT OUT lora|full."""

import os
import sys
from pathlib import Path

from umarvel_hf._torchvision import ensure_torchvision

ensure_torchvision()

import torch
from datasets import Dataset
from safetensors.torch import save_file

from train_on_ranks import WORDS
from umarvel_hf.encoding import load
from umarvel_hf.trainer.adapters import Lora, add_lora, last_checkpoint
from umarvel_hf.trainer.arguments import UMarvelTrainingArguments
from umarvel_hf.trainer.trainer import UMarvelTrainer


def main(checkpoint: str, out: Path, kind: str) -> None:
    texts = [f"one {word} on a {other}" for word, other in zip(WORDS, WORDS[::-1], strict=True)]
    rows = Dataset.from_dict({"query": [f"a {word}" for word in WORDS], "positive": texts})
    model = load(checkpoint, device="cpu")
    if kind == "lora":
        add_lora(model, Lora(r=4, alpha=8), train_temperature=True)
    arguments = UMarvelTrainingArguments(
        str(out / "run"),
        per_device_train_batch_size=4,
        mini_batch_size=2,
        max_steps=2,
        learning_rate=1e-3,
        temperature_learning_rate=1e-2,
        save_steps=2,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = UMarvelTrainer(model=model, args=arguments, train_dataset=rows)
    trainer.train()
    torch.distributed.barrier()
    assert trainer.accelerator.mixed_precision == "bf16" and trainer.accelerator.num_processes == 2
    assert last_checkpoint(out / "run") == str(out / "run/checkpoint-2")
    parameters = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    save_file(parameters, out / f"{os.environ['RANK']}.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
    torch.distributed.destroy_process_group()
