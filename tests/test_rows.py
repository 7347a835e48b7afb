"""Rows of several sources as one data set, and the trainer that takes them."""

import json
import math
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from PIL import Image
from torch.utils.data import DataLoader

from colours import COLOURS, write_benchmark, write_training_split
from umarvel_hf.data import MBeir
from umarvel_hf.encoding import load
from umarvel_hf.messages import chat
from umarvel_hf.trainer.arguments import UMarvelTrainingArguments
from umarvel_hf.trainer.augmentation import Augmentation
from umarvel_hf.trainer.batches import BlockBatchSampler
from umarvel_hf.trainer.losses import PADDING_ID
from umarvel_hf.trainer.rows import TrainingRows
from umarvel_hf.trainer.sources import MBeirRows, Pairs
from umarvel_hf.trainer.trainer import UMarvelTrainer

AUGMENTATION = Augmentation(shift=0.05, scale=0.1, colour=0.3, greyscale=0.1)


@pytest.fixture
def root(tmp_path):
    return write_training_split(write_benchmark(tmp_path / "data"))


@pytest.fixture
def nli(tmp_path):
    """The csv file of six sentences, each with another and one that contradicts it."""
    path = tmp_path / "nli.csv"
    lines = [f"a {name} square,it is {name},it is grey\n" for name in COLOURS]
    path.write_text("".join(["sent0,sent1,hard_neg\n", *lines]))
    return path


def begin(rows, epoch=0.0):
    """What the trainer tells its callbacks at the beginning."""
    rows.on_train_begin(SimpleNamespace(dataloader_persistent_workers=False), None, None)
    rows.on_epoch_begin(None, SimpleNamespace(epoch=epoch), None)


def picture(row, column="anchor"):
    return next(part["image"] for part in row[column][-1]["content"] if part["type"] == "image")


def test_a_row_holds_a_query_with_its_instruction_and_a_positive(root):
    rows = TrainingRows([MBeirRows(MBeir(root))], seed=0)
    dataset = rows.dataset
    assert len(rows) == len(dataset) == len(rows.groups) == 18 and dataset.column_names == ["row"]
    row = dataset[0]
    assert list(row) == ["anchor", "positive", "label"]
    assert row["anchor"][0]["role"] == "system" and row["anchor"][1] == chat("red.")[0]
    assert dataset[[0, 5]] == {name: [dataset[0][name], dataset[5][name]] for name in row}
    assert dataset[3:5]["label"] == [dataset[at]["label"] for at in (3, 4)]
    assert dataset.__getitems__([4, 2]) == [dataset[4], dataset[2]]
    assert [one["label"] for one in dataset] == [dataset[at]["label"] for at in range(18)]


def test_sources_stand_one_after_the_other_and_labels_name_their_rows(root, nli):
    rows = TrainingRows([Pairs.nli(nli), MBeirRows(MBeir(root))], seed=0)
    assert rows.groups == 6 * ["nli"] + 6 * ["1 task 0"] + 6 * ["1 task 3"] + 6 * ["2 task 7"]
    assert rows.columns == dict.fromkeys(dict.fromkeys(rows.groups), ("anchor", "positive"))
    labels = rows.dataset[:]["label"]
    assert [label[0] for label in labels] == list(range(24))
    assert {len(label) for label in labels} == {3} and labels[0][2] == PADDING_ID
    assert rows.name(labels[3][0]) == f"{nli}:5"
    assert rows.name(labels[6][0]).endswith("mbeir_union_up_train.jsonl:1, query '1:0'")
    mixed = rows.dataset[[23, 0, 7]]
    assert mixed["label"] == [labels[at] for at in (23, 0, 7)] and mixed["anchor"][1] == chat("a red square")


def test_two_kinds_of_rows_in_one_group_are_refused(nli):
    with pytest.raises(
        ValueError, match=r"Two sources have rows of 'nli', with the columns anchor, positive and anchor"
    ):
        TrainingRows([Pairs.nli(nli), Pairs.nli(nli, negatives=True)], seed=0)


def test_pictures_stay_unopened_until_training_begins(root):
    rows = TrainingRows([MBeirRows(MBeir(root))], seed=0)
    path = str(root / "mbeir_images/plain_red.png")
    assert picture(rows.dataset[12]) == path
    begin(rows)
    opened = picture(rows.dataset[12])
    assert isinstance(opened, Image.Image) and np.array_equal(opened, Image.open(path).convert("RGB"))


def test_a_picture_that_does_not_open_is_named_with_its_row(root):
    rows = TrainingRows([MBeirRows(MBeir(root))], seed=0)
    (root / "mbeir_images/plain_red.png").write_bytes(b"no picture")
    begin(rows)
    with pytest.raises(ValueError, match=r"train.jsonl:13, query '2:0': '.*plain_red.png' is not a picture"):
        rows.dataset[[13, 12]]


def test_changes_to_pictures_follow_from_seed_epoch_row_and_column(root):
    def pixels(epoch=0.0, seed=0):
        rows = TrainingRows([MBeirRows(MBeir(root))], seed=seed, augmentation=AUGMENTATION)
        begin(rows, epoch)
        return [np.asarray(picture(rows.dataset[at])).tolist() for at in (12, 13)]

    assert pixels() == pixels() == pixels(epoch=0.5)
    assert pixels() != pixels(epoch=1.75) != pixels(seed=1)


def test_workers_that_would_never_learn_the_epoch_are_refused(nli):
    rows = TrainingRows([Pairs.nli(nli)], seed=0)
    with pytest.raises(ValueError, match="dataloader_persistent_workers is True"):
        rows.on_train_begin(SimpleNamespace(dataloader_persistent_workers=True), None, None)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_gone_on_with_in_its_middle_is_that_of_an_unbroken_run(root, ranks, workers):
    def loader(rows, rank):
        sampler = BlockBatchSampler(
            rows.dataset, groups=rows.groups, block_size=1, batch_size=2, drop_last=True, ranks=ranks
        )
        plain = DataLoader(rows.dataset, batch_sampler=sampler, collate_fn=list, num_workers=workers)
        return prepare_data_loader(
            plain, num_processes=ranks, process_index=rank, put_on_device=False, even_batches=False
        )

    def run(rank, epoch, skipped=0):
        rows = TrainingRows([MBeirRows(MBeir(root))], seed=0)
        begin(rows)
        batches = loader(rows, rank)
        rows.on_epoch_begin(None, SimpleNamespace(epoch=epoch), None, train_dataloader=batches)
        if skipped:
            batches = skip_first_batches(batches, skipped)
        batches.set_epoch(int(epoch))  # so the trainer does
        inner = getattr(batches.batch_sampler, "batch_sampler", None)
        if hasattr(inner, "set_epoch"):
            inner.set_epoch(int(epoch))
        return [[(row["label"], row["anchor"][0]) for row in batch] for batch in batches]

    whole = [run(rank, 1.0) for rank in range(ranks)]
    assert [run(rank, 1.5, skipped=2) for rank in range(ranks)] == [batches[2:] for batches in whole]
    assert whole != [run(rank, 0.0) for rank in range(ranks)]
    seen = [label[0] for batches in whole for batch in batches for label, _ in batch]
    assert len(seen) == 16 if ranks == 2 else 18


def test_a_model_trains_on_them(checkpoint, root, nli, tmp_path):
    rows = TrainingRows([Pairs.nli(nli, negatives=True), MBeirRows(MBeir(root))], seed=0, augmentation=AUGMENTATION)
    sampler = partial(BlockBatchSampler, groups=rows.groups, columns=rows.columns, block_size=6)
    arguments = UMarvelTrainingArguments(
        str(tmp_path / "run"),
        batch_sampler=sampler,
        per_device_train_batch_size=6,
        num_train_epochs=1,
        learning_rate=1e-3,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    model = load(checkpoint)
    trainer = UMarvelTrainer(model=model, args=arguments, train_dataset=rows.dataset, callbacks=[rows])
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 4 and all(math.isfinite(loss) and loss > 0 for loss in losses)
    card = json.dumps(model.model_card_data.train_datasets, default=str)
    assert "anchor" in card and "negative_1" in card
