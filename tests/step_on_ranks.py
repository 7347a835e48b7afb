"""Two steps, the second of them twice, as one of several ranks: step_on_ranks.py CHECKPOINT OUT lora|full."""

import os
import sys
from pathlib import Path

from umarvel_hf._torchvision import ensure_torchvision

ensure_torchvision()

import torch
from datasets import Dataset
from safetensors.torch import save_file

from colours import write_benchmark
from train_on_ranks import WORDS, whole
from umarvel_hf.data import MBeir
from umarvel_hf.encoding import load
from umarvel_hf.trainer.adapters import Lora, add_lora, last_checkpoint
from umarvel_hf.trainer.arguments import UMarvelTrainingArguments
from umarvel_hf.trainer.evaluator import RetrievalEvaluator
from umarvel_hf.trainer.trainer import UMarvelTrainer


def trained(checkpoint: str, out: Path, kind: str, resume: str | None = None) -> tuple[dict, UMarvelTrainer]:
    """The weights after two steps, of which the first may be gone on from."""
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
        save_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    benchmark = MBeir(out / f"data-{os.environ['RANK']}")
    evaluator = RetrievalEvaluator(benchmark, split="test", queries_per_task=2, candidates_per_task=4)
    trainer = UMarvelTrainer(model=model, args=arguments, train_dataset=rows, evaluator=evaluator)
    trainer.train(resume_from_checkpoint=resume)
    assert resume or sum("eval_union_hit@5" in logged for logged in trainer.state.log_history) == 2
    return {name: whole(parameter) for name, parameter in model.named_parameters()}, trainer


def main(checkpoint: str, out: Path, kind: str) -> None:
    write_benchmark(out / f"data-{os.environ['RANK']}")
    parameters, trainer = trained(checkpoint, out, kind)
    trainer.save_model(str(out / "saved"))
    torch.distributed.barrier()
    assert trainer.accelerator.mixed_precision == "bf16" and trainer.accelerator.num_processes == 2
    assert last_checkpoint(out / "run") == str(out / "run/checkpoint-2")
    again, _ = trained(checkpoint, out, kind, resume=str(out / "run/checkpoint-1"))
    assert all(torch.equal(again[name], parameter) for name, parameter in parameters.items())
    save_file(parameters, out / f"{os.environ['RANK']}.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
    torch.distributed.destroy_process_group()
