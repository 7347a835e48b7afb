"""Mining while a model is trained: at the right epochs, seen by workers, and without a trace in the training."""

import random
from functools import partial
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.distributed.fsdp import FSDPModule

from umarvel_hf.encoding import load
from umarvel_hf.negatives import MinedList, NegativeTable
from umarvel_hf.trainer.arguments import UMarvelTrainingArguments
from umarvel_hf.trainer.callbacks import HardNegativeMining
from umarvel_hf.trainer.trainer import UMarvelTrainer

COLOURS = ("red", "green", "blue", "white")


class FakeRows:
    """Four rows whose negatives come from the table that is in use."""

    def __init__(self):
        self.tables = []
        self.dataset = Dataset.from_dict({"row": list(range(len(COLOURS)))}).with_transform(self.texts)

    def use(self, tables):
        self.tables.append(tables)

    def texts(self, rows):
        lists = [self.tables[-1]["union"][f"1:{row}"] if self.tables else None for row in rows["row"]]
        return {
            "anchor": [f"a {COLOURS[row]} dog" for row in rows["row"]],
            "positive": [f"the {COLOURS[row]} dog" for row in rows["row"]],
            "negative": [one.dids[0] if one else "none yet" for one in lists],
        }


class Miner:
    """Writes a table whose negatives say which mining it was, or always the same; remembers how it was called."""

    def __init__(self, same=False):
        self.same, self.folders = same, []

    def __call__(self, model, folder):
        assert not any(module.training for module in model.modules())
        model.encode(["a dog", "a cat"])
        random.random(), np.random.rand(), torch.rand(1)
        self.folders.append(folder.name)
        return tables(folder, "a cat" if self.same else f"a cat of {folder.name}")


def tables(folder, text):
    """Lists of this one candidate."""
    none = np.zeros(1, dtype=np.float32)
    lists = [MinedList(f"1:{row}", ("right",), none, (text,), none) for row in range(len(COLOURS))]
    return {"union": NegativeTable.write(folder / "union.parquet", lists, {})}


class Recording(UMarvelTrainer):
    """Remembers the negatives that reach the loss, by epoch."""

    def compute_loss(self, model, inputs, *args, **kwargs):
        seen = self.__dict__.setdefault("seen", {}).setdefault(int(self.state.epoch or 0), set())
        seen.update(self.model.tokenizer.batch_decode(inputs["negative_input_ids"], skip_special_tokens=True))
        return super().compute_loss(model, inputs, *args, **kwargs)


def trained(checkpoint, out, rows, callbacks, resume=None, **settings):
    """Three epochs of two steps, with dropout."""
    model = load(checkpoint)
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.1
    defaults = {
        "per_device_train_batch_size": 2,
        "num_train_epochs": 3,
        "learning_rate": 1e-3,
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
    }
    arguments = UMarvelTrainingArguments(str(out / "run"), **(defaults | settings))
    trainer = Recording(model=model, args=arguments, train_dataset=rows.dataset, callbacks=callbacks)
    trainer.train(resume_from_checkpoint=resume and str(resume))
    return trainer


def weights(trainer):
    return {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}


def assert_equal(left, right):
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


def test_negatives_of_an_epoch_reach_its_batches_through_workers(checkpoint, tmp_path):
    rows, miner = FakeRows(), Miner()
    mining = HardNegativeMining(miner, rows, tmp_path / "mined")
    trainer = trained(checkpoint, tmp_path, rows, [mining], dataloader_num_workers=2, num_train_epochs=2)
    assert miner.folders == ["epoch-1"]
    assert {epoch: len(seen) for epoch, seen in trainer.seen.items()} == {0: 1, 1: 1}
    for epoch, text in ((0, "none yet"), (1, "a cat of epoch-1")):
        assert text in trainer.seen[epoch].pop()
    files = [path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("mined/*/*")]
    assert files == ["mined/epoch-1/union.parquet"]


def test_training_is_bit_for_bit_as_without_mining_if_the_tables_are_alike(checkpoint, tmp_path):
    first = tables(tmp_path / "first", "a cat")
    rows, miner = FakeRows(), Miner(same=True)
    rows.use(first)
    with_mining = trained(checkpoint, tmp_path, rows, [HardNegativeMining(miner, rows, tmp_path / "mined")])
    assert miner.folders == ["epoch-1", "epoch-2"]
    rows = FakeRows()
    rows.use(first)
    without = trained(checkpoint, tmp_path, rows, [])
    assert_equal(weights(with_mining), weights(without))
    assert with_mining.state.log_history[-1]["train_loss"] == without.state.log_history[-1]["train_loss"]


def test_a_run_continued_in_the_middle_of_an_epoch_takes_its_tables_from_the_disk(checkpoint, tmp_path):
    rows, miner = FakeRows(), Miner()
    saving = {"save_strategy": "steps", "save_steps": 3}  # in the middle of epoch 1
    mining = partial(HardNegativeMining, out=tmp_path / "mined")
    whole = trained(checkpoint, tmp_path, rows, [mining(miner, rows)], **saving)
    assert miner.folders == ["epoch-1", "epoch-2"]
    rows, miner = FakeRows(), Miner()
    again = trained(checkpoint, tmp_path, rows, [mining(miner, rows)], resume=tmp_path / "run/checkpoint-3", **saving)
    assert miner.folders == ["epoch-2"]
    assert [used["union"].path.parent.name for used in rows.tables] == ["epoch-1", "epoch-2"]
    assert_equal(weights(again), weights(whole))
    assert {epoch: len(seen) for epoch, seen in again.seen.items()} == {1: 1, 2: 1}


class Plain(torch.nn.Sequential):
    def __init__(self):
        super().__init__(torch.nn.Linear(2, 2), torch.nn.Dropout(), torch.nn.Dropout())
        self[2].eval()


def began(mining, *epochs, model=None):
    arguments = SimpleNamespace(device=torch.device("cpu"), dataloader_persistent_workers=False)
    mining.on_train_begin(arguments, None, None)
    for epoch in epochs:
        mining.on_epoch_begin(arguments, SimpleNamespace(epoch=epoch), None, model=model or Plain())


@pytest.fixture
def mined(tmp_path):
    """``mined(every, *epochs)``: the folders that are mined when a run begins these epochs, and those in use."""

    def mined(every, *epochs):
        folders, rows = [], FakeRows()

        def remine(model, folder):
            folders.append(folder.name)
            table = NegativeTable.write(folder / "local.parquet", [], {"folder": folder.name})
            return {"local": table}

        began(HardNegativeMining(remine, rows, tmp_path, every_epochs=every), *epochs)
        return folders, [tables["local"].facts["folder"] for tables in rows.tables]

    return mined


def test_every_second_epoch_is_mined(mined):
    assert mined(2, None, 1.0, 2.0, 3.0, 4.0) == (["epoch-2", "epoch-4"],) * 2


def test_a_run_continued_between_two_minings_uses_the_first(mined):
    mined(2, 0.0, 1.0, 2.0)
    assert mined(2, 3.0, 4.0) == (["epoch-4"], ["epoch-2", "epoch-4"])
    assert mined(2, 1.5, 2.0) == (["epoch-2"],) * 2  # before, the rows have what they were made with
    assert mined(1, 2.0) == (["epoch-2"], ["epoch-2"])  # at its beginning nothing is gone on with


def test_tables_that_are_gone_are_named(mined):
    with pytest.raises(FileNotFoundError, match=r"epoch-2 has no tables, but training goes on at epoch 3.25"):
        mined(2, 3.25)


def test_modes_and_random_states_are_put_back_also_if_mining_fails(tmp_path):
    def failing(model, folder):
        assert not model[1].training
        random.random(), np.random.rand(), torch.rand(1)
        raise KeyboardInterrupt

    model = Plain()
    modes = [module.training for module in model.modules()]
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    with pytest.raises(KeyboardInterrupt):
        began(HardNegativeMining(failing, FakeRows(), tmp_path), 1.0, model=model)
    assert [module.training for module in model.modules()] == modes == [True, True, True, False]
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == states


def test_workers_that_outlive_an_epoch_and_split_weights_are_refused(checkpoint, tmp_path):
    rows = FakeRows()
    mining = HardNegativeMining(Miner(), rows, tmp_path, every_epochs=2)
    with pytest.raises(ValueError, match=r"dataloader_persistent_workers is True and .* every_epochs=2"):
        mining.on_train_begin(SimpleNamespace(dataloader_persistent_workers=True), None, None)
    split = Mock(spec=FSDPModule)
    with pytest.raises(ValueError, match=r"FSDP splits .*ddp\.yaml"):
        mining.on_train_begin(SimpleNamespace(dataloader_persistent_workers=False), None, None, model=split)
    with pytest.raises(ValueError, match="every_epochs is 0"):
        HardNegativeMining(Miner(), rows, tmp_path, every_epochs=0)
