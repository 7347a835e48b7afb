"""Rows for the trainer, and the order in which batches take them."""

import json
from collections import Counter

import pytest
from datasets import Dataset

from colours import COLOURS, write_benchmark, write_training_split
from umarvel_hf.data import MBeir
from umarvel_hf.trainer.losses import PADDING_ID
from umarvel_hf.trainer.rows import BlockBatchSampler, mbeir_rows

QUERIES = "query/union_train/mbeir_union_up_train.jsonl"


@pytest.fixture
def root(tmp_path):
    return write_training_split(write_benchmark(tmp_path / "data"))


def edit(path, line, **fields):
    lines = path.read_text().splitlines()
    lines[line] = json.dumps(json.loads(lines[line]) | fields)
    path.write_text("\n".join(lines) + "\n")


def test_a_row_holds_a_query_with_its_instruction_and_a_positive(root):
    rows, groups = mbeir_rows(MBeir(root), seed=0)
    assert len(rows) == len(groups) == 3 * len(COLOURS)
    assert Counter(groups) == {"1 task 0": 6, "1 task 3": 6, "2 task 7": 6}
    red, picture, changed = rows[0], rows[6], rows[12]

    system, user = red["anchor"]
    assert system["role"] == "system" and system["content"][0]["text"] in ("Find its picture.", "Show it.")
    assert user == {"role": "user", "content": [{"type": "text", "text": "red.", "image": None}]}
    shown = [str(root / f"mbeir_images/{tone}_red.png") for tone in ("plain", "dark")]
    assert [message["role"] for message in red["positive"]] == ["user"]
    assert red["positive"][0]["content"][0]["image"] in shown

    assert picture["anchor"][1]["content"] == [{"type": "image", "image": shown[1], "text": None}]
    assert picture["positive"][0]["content"] == [{"type": "text", "text": "A red square.", "image": None}]

    kinds = [(part["type"], part["image"], part["text"]) for part in changed["anchor"][1]["content"]]
    assert kinds == [("image", shown[0], None), ("text", None, "darker.")]
    assert changed["positive"][0]["content"][0]["image"] == shown[1]


def test_labels_number_the_query_its_positive_and_its_other_positives(root):
    edit(root / QUERIES, 1, pos_cand_list=["1:1"])  # "green" has one right answer only
    rows, _ = mbeir_rows(MBeir(root), seed=0)
    # The pool: plain, dark and text of each colour in turn; so 0, 1, 2 are red's, 3, 4, 5 green's.
    red, green, picture, changed = (rows[at]["label"] for at in (0, 1, 6, 12))
    assert red in ([0, 0, 1], [0, 1, 0])
    assert green == [1, 3, PADDING_ID]
    assert picture == [6, 2, PADDING_ID]
    assert changed == [12, 1, PADDING_ID]
    drawn = "plain" if red[1] == 0 else "dark"
    assert f"{drawn}_red" in rows[0]["positive"][0]["content"][0]["image"]


def test_the_same_seed_draws_the_same_rows_and_another_seed_others(root):
    first, again, other = (mbeir_rows(MBeir(root), seed=seed)[0].to_list() for seed in (0, 0, 1))
    assert first == again != other


def test_a_row_does_not_depend_on_the_rows_after_it(root):
    whole, _ = mbeir_rows(MBeir(root), seed=0)
    path = root / QUERIES
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:9]))
    part, _ = mbeir_rows(MBeir(root), seed=0)
    assert part.to_list() == whole.select(range(9)).to_list()


def test_a_repeated_query_may_draw_another_positive(root):
    path = root / QUERIES
    path.write_text(40 * path.read_text().splitlines(keepends=True)[0])
    rows, _ = mbeir_rows(MBeir(root), seed=0)
    assert {label[1] for label in rows["label"]} == {0, 1}
    assert len({label[0] for label in rows["label"]}) == 40


@pytest.mark.parametrize(
    ("positives", "message"),
    [([], "'1:0' names no positive"), (["1:99"], "positive '1:99', which is not among the 18 candidates")],
)
def test_a_query_without_a_positive_in_the_pool_is_named(root, positives, message):
    edit(root / QUERIES, 0, pos_cand_list=positives)
    with pytest.raises(ValueError, match=message):
        mbeir_rows(MBeir(root), seed=0)


GROUPS = 13 * ["a"] + 8 * ["b"] + 30 * ["c"]


def batches(seed=0, epoch=0, block_size=4, batch_size=8, groups=GROUPS, first=(), rows=None):
    rows = rows or Dataset.from_dict({"row": list(range(len(groups)))})
    sampler = BlockBatchSampler(
        rows, groups=groups, block_size=block_size, first=first, batch_size=batch_size, drop_last=True, seed=seed
    )
    sampler.set_epoch(epoch)
    drawn = list(sampler)
    assert len(drawn) == len(sampler)
    return drawn


@pytest.mark.parametrize("block_size", [1, 2, 4, 8])
def test_every_block_is_of_one_group_and_no_row_comes_twice(block_size):
    drawn = batches(block_size=block_size)
    assert all(len(batch) == 8 for batch in drawn)
    blocks = [batch[at : at + block_size] for batch in drawn for at in range(0, 8, block_size)]
    assert all(len({GROUPS[row] for row in block}) == 1 for block in blocks)
    rows = [row for batch in drawn for row in batch]
    assert len(set(rows)) == len(rows)
    # Of 13, 8 and 30 rows as many as fill blocks, of these as many as fill batches.
    assert len(drawn) == {1: 51, 2: 50, 4: 48, 8: 40}[block_size] // 8


def test_blocks_of_several_groups_meet_in_a_batch():
    assert any(len({GROUPS[row] for row in batch}) > 1 for batch in batches())
    assert all(len({GROUPS[row] for row in batch}) == 1 for batch in batches(block_size=8))


def test_the_order_follows_from_seed_and_epoch():
    assert batches() == batches()
    assert batches(epoch=3) == batches(epoch=3)
    assert batches() != batches(epoch=1) != batches(epoch=2)
    assert batches() != batches(seed=5)


def test_rows_left_out_in_one_epoch_come_in_another():
    seen = {row for epoch in range(20) for batch in batches(epoch=epoch) for row in batch}
    assert seen == set(range(len(GROUPS)))


def test_groups_that_come_first_open_the_first_epoch_only():
    def groups_in_order(epoch):
        rows = [row for batch in batches(first=("c", "a"), epoch=epoch) for row in batch]
        return [GROUPS[row] for row in rows]

    assert groups_in_order(0) == 28 * ["c"] + 12 * ["a"] + 8 * ["b"]
    assert groups_in_order(1) != sorted(groups_in_order(1), key="cab".index)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"Groups \['d'\] are to come first"):
        batches(first=("a", "d"))
    with pytest.raises(ValueError, match="block_size 3 does not divide the batch size 8"):
        batches(block_size=3)
    with pytest.raises(ValueError, match="There are 4 rows and 3 groups"):
        batches(groups=list("abc"), rows=Dataset.from_dict({"row": [0, 1, 2, 3]}))
