"""The order in which batches take rows."""

from collections import Counter

import pytest
from accelerate.data_loader import BatchSamplerShard
from datasets import Dataset

from umarvel_hf.trainer.batches import BlockBatchSampler

GROUPS = 13 * ["a"] + 8 * ["b"] + 30 * ["c"]


def sampler(groups=GROUPS, block_size=4, batch_size=8, seed=0, rows=None, **settings):
    rows = rows or Dataset.from_dict({"row": list(range(len(groups)))})
    return BlockBatchSampler(
        rows, groups=groups, block_size=block_size, batch_size=batch_size, drop_last=True, seed=seed, **settings
    )


def batches(epoch=0, **settings):
    drawn = sampler(**settings)
    drawn.set_epoch(epoch)
    assert len(list(drawn)) == len(drawn)
    return list(drawn)


def flat(epochs, **settings):
    return [row for epoch in epochs for batch in batches(epoch, **settings) for row in batch]


@pytest.mark.parametrize("block_size", [1, 2, 4, 8])
def test_every_block_is_of_one_group_and_no_row_comes_twice(block_size):
    drawn = batches(block_size=block_size)
    assert all(len(batch) == 8 for batch in drawn)
    blocks = [batch[at : at + block_size] for batch in drawn for at in range(0, 8, block_size)]
    assert all(len({GROUPS[row] for row in block}) == 1 for block in blocks)
    if block_size < 8:  # the 40 rows of whole blocks of 8 do not fill six batches
        rows = [row for batch in drawn for row in batch]
        assert len(set(rows)) == len(rows)
    assert len(drawn) == 51 // 8


def test_blocks_of_several_groups_meet_in_a_batch():
    assert any(len({GROUPS[row] for row in batch}) > 1 for batch in batches())
    assert all(len({GROUPS[row] for row in batch}) == 1 for epoch in range(5) for batch in batches(epoch, block_size=8))


def test_the_order_follows_from_seed_and_epoch():
    assert batches() == batches()
    assert batches(epoch=3) == batches(epoch=3)
    assert batches() != batches(epoch=1) != batches(epoch=2)
    assert batches() != batches(seed=5)


@pytest.mark.parametrize("block_size", [1, 4, 8])
def test_every_row_comes_equally_often_in_the_long_run(block_size):
    times = Counter(flat(range(34), block_size=block_size))  # 34 epochs of 48 rows are 32 rounds of 51
    assert set(times) == set(range(51)) and sum(times.values()) == 32 * 51
    assert set(times.values()) <= {31, 32, 33}


def test_weights_say_how_often_rows_come():
    groups, weights = 12 * ["rare"] + 8 * ["often"] + 16 * ["plain"], {"rare": 0.5, "often": 2}
    settings = {"groups": groups, "weights": weights, "batch_size": 2, "block_size": 2}
    assert len(batches(**settings)) == (6 + 16 + 16) // 2
    for epochs in (2, 6):
        times = Counter(flat(range(epochs), **settings))
        assert times == {row: epochs * weights.get(group, 1) for row, group in enumerate(groups)}
    in_one = Counter(groups[row] for row in flat([1], **settings))
    assert in_one == {"rare": 6, "often": 16, "plain": 16}


def test_a_weight_that_is_no_fraction_of_two_is_kept_exactly():
    times = Counter(flat(range(10), groups=10 * ["a"] + 10 * ["b"], weights={"a": 2.3}, batch_size=3, block_size=1))
    # 33 rows a round; ten rounds are ten epochs of eleven batches.
    assert times == {**dict.fromkeys(range(10), 23), **dict.fromkeys(range(10, 20), 10)}


def test_short_epochs_one_after_the_other_are_whole_ones():
    whole = [batch for epoch in range(3) for batch in batches(epoch)]
    assert len(whole) == 18
    for length in (1, 4, 9):
        short = [batch for epoch in range(18 // length) for batch in batches(epoch, batches_per_epoch=length)]
        assert short == whole[: len(short)]
    long = [batch for epoch in range(2) for batch in batches(epoch, batches_per_epoch=9)]
    assert long == whole


@pytest.mark.parametrize("block_size", [1, 2, 4, 12, 24])
@pytest.mark.parametrize("short", [None, 2])
def test_ranks_with_small_batches_take_what_one_takes_with_a_large_one(block_size, short):
    groups = 30 * ["a"] + 41 * ["b"]
    alone = sampler(groups, block_size, batch_size=12, batches_per_epoch=short)
    many = sampler(groups, block_size, batch_size=4, ranks=3, batches_per_epoch=short and 3 * short)
    shards = [BatchSamplerShard(many, num_processes=3, process_index=rank, even_batches=False) for rank in range(3)]
    for epoch in range(5):
        alone.set_epoch(epoch)
        many.set_epoch(epoch)
        assert {len(shard) for shard in shards} == {len(alone)}
        steps = list(zip(*shards, strict=True))
        assert [[row for batch in step for row in batch] for step in steps] == list(alone)


def test_groups_that_come_first_open_the_first_round_only():
    def groups_in_order(epoch):
        return [GROUPS[row] for row in flat([epoch], first=("c", "a"))]

    assert groups_in_order(0) == 28 * ["c"] + 12 * ["a"] + 8 * ["b"]
    assert groups_in_order(1) != sorted(groups_in_order(1), key="cab".index)


def test_batches_that_would_mix_columns_are_refused():
    columns = {"a": ("anchor", "positive"), "b": ("anchor", "positive"), "c": ("anchor", "positive", "negative_1")}
    with pytest.raises(ValueError, match="rows of 'c' have the columns anchor, positive, negative_1") as error:
        batches(columns=columns)
    assert "rows of 'b' have the columns anchor, positive;" in str(error.value)
    assert batches(columns=columns, block_size=8)
    with pytest.raises(ValueError, match="Blocks of 8 rows would mix them in a step of 16"):
        batches(columns=columns, block_size=8, ranks=2)
    assert batches(columns=dict.fromkeys("abc", ("anchor", "positive")))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"Groups \['d'\] are to come first"):
        batches(first=("a", "d"))
    with pytest.raises(ValueError, match=r"Groups \['d'\] have weights"):
        batches(weights={"d": 2})
    with pytest.raises(ValueError, match="Group 'a' has weight 0; give more than 0"):
        batches(weights={"a": 0})
    with pytest.raises(ValueError, match="block_size 3 does not divide the batch size 8"):
        batches(block_size=3)
    with pytest.raises(ValueError, match="There are 4 rows and 3 groups"):
        batches(groups=list("abc"), rows=Dataset.from_dict({"row": [0, 1, 2, 3]}))
    with pytest.raises(ValueError, match=r"An epoch would have 0 batches of 64 rows for 1 ranks .*: 51"):
        batches(batch_size=64, block_size=1)
    with pytest.raises(ValueError, match="5 batches of 8 rows for 2 ranks"):
        batches(batches_per_epoch=5, ranks=2)


def test_a_group_smaller_than_a_block_is_told(caplog):
    assert batches(groups=30 * ["a"] + 3 * ["b"])
    assert "Group 'b' has 3 rows, so blocks of 4 hold some of them twice." in caplog.text
