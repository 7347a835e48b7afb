"""What happens while a model is trained: negatives are mined anew, and what goes to the Hub is made whole."""

import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import PartialState
from sentence_transformers import SentenceTransformer
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from umarvel_hf.negatives import NegativeTable

# Of a checkpoint's files, those that go on with a training and are no part of the model.
OF_TRAINING = ("optimizer*", "scheduler*", "scaler*", "rng_state*", "trainer_state.json", "training_args.bin", "*.pt*")


class PushWholeModels(TrainerCallback):
    """Lets the trainer push models that load: while it trains, the host pushes weights and configuration alone."""

    def on_push_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Put the code and modules of the checkpoint that is pushed beside its weights."""
        checkpoint = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and checkpoint.is_dir():
            ignored = shutil.ignore_patterns(*OF_TRAINING)
            shutil.copytree(checkpoint, str(args.output_dir), ignore=ignored, dirs_exist_ok=True)


class Rows(Protocol):
    """Training rows that take their negatives from tables."""

    def use(self, tables: Mapping[str, NegativeTable]) -> None:
        """Take them from these tables, by pool, from now on."""
        ...


class HardNegativeMining(TrainerCallback):
    """Mines anew as epochs begin and hands the tables to the rows, before the first batch of the epoch is made.

    Until it first does, the rows keep the tables that they were made with. The training goes on as if nothing had
    happened: modes and random states are put back. A run that is continued in the middle of an epoch takes the tables
    that it was begun with from the disk.

    Args:
        remine: From the model and a folder to the tables by pool, each written as ``<pool>.parquet`` in the folder.
        rows: What the trainer reads.
        out: The tables go to ``out/epoch-<n>``.
        every_epochs: 2 mines when the epochs 2, 4, 6… begin, counted from 0.

    Raises:
        ValueError: ``every_epochs`` is below 1; as training begins, persistent data loader workers or weights split by
            FSDP.
        FileNotFoundError: As a continued epoch begins, its tables are gone.
    """

    def __init__(
        self,
        remine: Callable[[SentenceTransformer, Path], Mapping[str, NegativeTable]],
        rows: Rows,
        out: Path,
        *,
        every_epochs: int = 1,
    ) -> None:
        if every_epochs < 1:
            raise ValueError(f"every_epochs is {every_epochs}; give at least 1.")
        self._remine, self._rows, self._out, self._every = remine, rows, out, every_epochs
        self._used: int | None = None  # the epoch whose tables the rows have

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refuse workers that would never see new tables, and weights that no rank holds."""
        if args.dataloader_persistent_workers:
            raise ValueError(
                f"dataloader_persistent_workers is True and HardNegativeMining has every_epochs={self._every}: workers "
                "that outlive an epoch never see new negatives. Leave out one of the two."
            )
        if isinstance(kwargs.get("model"), FSDPModule):
            raise ValueError(
                "FSDP splits the model's weights, and HardNegativeMining has every rank encode its own part of the "
                "data, while weights are gathered only where all ranks ask at once. Launch with "
                "recipes/accelerate/ddp.yaml, or mine in stages of their own."
            )
        self._used = None

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Mine, if it is time to, or open what was mined for an epoch that is gone on with."""
        now = state.epoch or 0.0
        epoch = int(now) // self._every * self._every
        if epoch in (0, self._used):
            return
        folder = self._out / f"epoch-{epoch}"
        if now > epoch:
            tables: Mapping[str, NegativeTable] = {
                path.stem: NegativeTable.open(path) for path in sorted(folder.glob("*.parquet"))
            }
            if not tables:
                raise FileNotFoundError(
                    f"{folder} has no tables, but training goes on at epoch {now:.2f} with what was mined at epoch "
                    f"{epoch}. Put them back or go on from an earlier checkpoint."
                )
        else:
            ranks = PartialState()
            if ranks.is_main_process:
                for path in folder.glob("*.parquet"):  # of an attempt that was broken off, by other weights
                    path.unlink()
            ranks.wait_for_everyone()
            with _undisturbed(kwargs["model"], args.device):
                tables = self._remine(kwargs["model"], folder)
        self._rows.use(tables)
        self._used = epoch


@contextmanager
def _undisturbed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Evaluation mode inside; afterwards every module's mode and all random states are as before."""
    modes = [(module, module.training) for module in model.modules()]
    states, numpy_states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        model.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training
            random.setstate(states)
            np.random.set_state(numpy_states)
