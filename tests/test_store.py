"""The vector store: filled in one go or in many, whole or refused."""

import json
import os
import subprocess
import sys
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from umarvel_hf.store import StoreChain, VectorStore, fill_store

ROWS, DIMENSION, SHARD_ROWS = 23, 8, 5
IDS = [f"d{at}é" for at in range(ROWS)]
MADE_BY = {"weights": "abc", "dtype": "float32"}


def unit_rows(rows=ROWS, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(rows, DIMENSION)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class Killed(BaseException):
    """Stands for the end of the process."""


class Filling:
    """Fills a folder and remembers which rows were encoded."""

    def __init__(self, folder, stop_at=None):
        self.folder, self.stop_at, self.encoded = folder, stop_at, []

    def encode(self, rows):
        if rows.start == self.stop_at:
            raise Killed
        self.encoded.append((rows.start, rows.stop))
        return unit_rows()[rows]

    def __call__(self, ids=IDS, **changes):
        settings = {"made_by": MADE_BY, "digest": lambda rows: f"{rows.start}-{rows.stop}", "shard_rows": SHARD_ROWS}
        return fill_store(self.folder, ids, self.encode, **{**settings, **changes})


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


@pytest.fixture
def whole(tmp_path):
    """A folder that was filled in one go."""
    Filling(tmp_path / "whole")()
    return tmp_path / "whole"


def test_a_store_gives_back_what_was_encoded(whole):
    store = VectorStore.open(whole, made_by=MADE_BY)
    assert (len(store), store.dimension, store.made_by) == (ROWS, DIMENSION, MADE_BY)
    assert [one.decode() for one in store.ids] == IDS
    half = unit_rows().astype(np.float16)
    for rows in (1, 3, 5, 100):
        blocks = list(store.blocks(rows))
        assert max(len(block) for _, block in blocks) <= rows
        assert (np.concatenate([block for _, block in blocks]) == half).all()
        assert all((half[here] == block).all() for here, block in blocks)
    at = np.array([22, 0, 7, 7, 4])
    assert (store.take(at) == half[at]).all() and store.take(at).dtype == np.float32
    assert store.take(np.array([], dtype=np.int64)).shape == (0, DIMENSION)
    with pytest.raises(IndexError, match="from -1 to 3; there are 23"):
        store.take(np.array([3, -1]))


@pytest.mark.parametrize("stop_at", range(0, ROWS, SHARD_ROWS))
def test_stopped_while_encoding_and_resumed_is_the_same_store(whole, tmp_path, stop_at):
    broken = Filling(tmp_path / "broken", stop_at)
    with pytest.raises(Killed):
        broken()
    again = Filling(tmp_path / "broken")
    again()
    assert again.encoded[0][0] == stop_at  # finished shards are not encoded again
    assert contents(tmp_path / "broken") == contents(whole)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_around_any_rename_and_resumed_is_the_same_store(whole, tmp_path, monkeypatch, moment):
    replace = Path.replace
    for kill_at in count():
        folder, calls = tmp_path / f"broken{kill_at}", count()

        def killing(path, target, calls=calls, kill_at=kill_at):
            now = next(calls) == kill_at
            if not now or moment == "after":
                replace(path, target)
            if now:
                raise Killed

        monkeypatch.setattr(Path, "replace", killing)
        first = Filling(folder)
        try:
            first()
        except Killed:
            monkeypatch.undo()
        else:
            break
        manifest = folder / "manifest.json"
        finished = len(json.loads(manifest.read_text())["shards"]) if manifest.exists() else 0
        again = Filling(folder)
        again()
        assert sorted({*first.encoded[:finished], *again.encoded}) == [(at, min(at + 5, 23)) for at in range(0, 23, 5)]
        assert contents(folder) == contents(whole)
    assert kill_at == 15  # vectors, ids and manifest of five shards


def test_a_killed_process_leaves_a_file_that_does_not_count(whole):
    before = contents(whole)
    (whole / "ids-00007-0123456789ab.npy.partial").write_bytes(b"half")
    (whole / "vectors-00007-0123456789ab.npy").write_bytes(b"left over")
    assert len(VectorStore.open(whole)) == ROWS
    Filling(whole)()
    assert contents(whole) == before


def test_a_complete_store_is_returned_without_encoding(whole):
    again = Filling(whole)
    assert len(again()) == ROWS
    assert again.encoded == []


def test_a_full_disk_leaves_the_finished_shards(whole, tmp_path, monkeypatch):
    calls, fsync = count(), os.fsync

    def full(descriptor):
        if next(calls) == 7:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr("umarvel_hf.store.os.fsync", full)
    folder = tmp_path / "full"
    with pytest.raises(OSError, match="No space left"):
        Filling(folder)()
    assert not list(folder.glob("*.partial"))
    with pytest.raises(ValueError, match="is unfinished: 2 of 5 shards are there"):
        VectorStore.open(folder)
    monkeypatch.undo()
    again = Filling(folder)
    again()
    assert [start for start, _ in again.encoded] == [10, 15, 20]
    assert contents(folder) == contents(whole)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"made_by": {**MADE_BY, "weights": "xyz"}}, r"made_by weights was abc and is xyz"),
        ({"made_by": {"weights": "abc"}}, r"made_by dtype was float32 and is not given"),
        ({"ids": IDS[:-1]}, "count was 23 and is 22"),
        ({"shard_rows": 6}, "rows a shard was 5 and is 6"),
        (
            {"ids": [*IDS[:12], "other", *IDS[13:]]},
            "shard 2, .* id of row 2 was d12é and is other",
        ),
        (
            {"digest": lambda rows: f"{rows.start + rows.start // 10}-{rows.stop}"},
            "shard 2, .* digest of the inputs was 10-15 and is 11-15",
        ),
    ],
)
def test_a_store_of_something_else_is_refused_with_the_difference(whole, changes, message):
    before, filling = contents(whole), Filling(whole)
    with pytest.raises(ValueError, match=rf"(?s){message}.*Name another folder, or remove this one"):
        filling(**changes)
    assert filling.encoded == []
    assert contents(whole) == before


def test_open_refuses_what_something_else_made(whole):
    with pytest.raises(ValueError, match="weights was abc and is new"):
        VectorStore.open(whole, made_by={**MADE_BY, "weights": "new"})


@pytest.mark.parametrize("kind", ["vectors", "ids"])
def test_a_damaged_store_is_refused(whole, kind):
    path = sorted(whole.glob(f"{kind}-*"))[3]
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    for opening in (lambda: VectorStore.open(whole), Filling(whole)):
        with pytest.raises(ValueError, match=rf"{path.name} has sha256 .*, manifest.json says .* encode anew"):
            opening()
    path.unlink()
    for opening in (lambda: VectorStore.open(whole), Filling(whole)):
        with pytest.raises(FileNotFoundError, match=rf"{path.name} does not exist, but manifest.json names it"):
            opening()


def test_a_manifest_that_was_changed_is_refused(whole):
    manifest = json.loads((whole / "manifest.json").read_text())
    (whole / "manifest.json").write_text(json.dumps(manifest | {"dimension": 9}))
    with pytest.raises(ValueError, match=r"shard 0: .*\(\(5, 8\), 'float16', \(5,\)\), .* says \(\(5, 9\)"):
        VectorStore.open(whole)
    (whole / "manifest.json").write_text(json.dumps(manifest | {"format": 1}))
    with pytest.raises(ValueError, match="has format 1; this version reads 2"):
        VectorStore.open(whole)
    with pytest.raises(FileNotFoundError, match=r"manifest.json does not exist. Pass a folder"):
        VectorStore.open(whole.parent)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["a", "", "b"], "number 1 is ''"),
        (["a", "b\0"], r"number 1 is 'b\\x00'"),
        (["a", "b\0c"], "none of them may be NUL"),
        (["a", "é", "b", "é"], "'é' occurs twice among 4"),
        (np.array([b"a", b"b\0c"]), "number 1 is"),
        ([], "the list of ids is empty"),
    ],
)
def test_ids_that_cannot_be_told_apart_are_refused(tmp_path, ids, message):
    with pytest.raises(ValueError, match=message):
        Filling(tmp_path / "new")(ids=ids)
    assert not (tmp_path / "new" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda rows: rows * np.nan, "5 of 5 embeddings are not of unit length.*Shard 2 of .* was not written"),
        (lambda rows: np.where(np.arange(5)[:, None] == 3, np.inf, rows), "1 of 5 .* number 3 with length inf"),
        (lambda rows: 2 * rows, "number 0 with length 2"),
        (lambda rows: rows[:-1], r"shard 2 of .* needs vectors of shape \(5, 8\), but got \(4, 8\)"),
        (lambda rows: rows[:, :1] / np.abs(rows[:, :1]), r"but got \(5, 1\)"),
    ],
)
def test_vectors_that_are_none_are_refused_before_they_are_written(tmp_path, bad, message):
    filling = Filling(tmp_path)
    encode = filling.encode
    filling.encode = lambda rows: bad(encode(rows)) if rows.start == 10 else encode(rows)
    with pytest.raises(ValueError, match=message):
        filling()
    with pytest.raises(ValueError, match="2 of 5 shards"):
        VectorStore.open(tmp_path)
    assert len(list(tmp_path.glob("*.npy"))) == 4


HOLD = """
import sys, time
from umarvel_hf.store import fill_store

def encode(rows):
    print("held", flush=True)
    time.sleep(600)

fill_store(sys.argv[1], ["a"], encode, made_by={}, digest=str)
"""


def test_a_second_process_is_refused_and_the_lock_dies_with_the_first(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError, match="is being filled by another process"):
            Filling(tmp_path)()
        with pytest.raises(BlockingIOError):
            VectorStore.write(tmp_path, IDS, unit_rows(), made_by={})
    finally:
        process.kill()
        process.communicate()
    assert len(Filling(tmp_path)()) == ROWS


def test_write_replaces_a_store_at_the_end_only(whole, monkeypatch):
    new = unit_rows(7, seed=1)
    for stop in range(5):  # two shards and the manifest
        monkeypatch.setattr(Path, "replace", stopping(Path.replace, count(), stop))
        with pytest.raises(Killed):
            VectorStore.write(whole, IDS[:7], new, made_by={"by": "hand"}, shard_rows=4)
        monkeypatch.undo()
        assert len(VectorStore.open(whole)) == ROWS
    store = VectorStore.write(whole, IDS[:7], new, made_by={"by": "hand"}, shard_rows=4)
    assert len(list(whole.glob("*.npy"))) == 4
    assert (store.take(np.arange(7)) == new.astype(np.float16)).all()
    assert VectorStore.open(whole).made_by == {"by": "hand"}
    assert len(VectorStore.write(whole, [], np.empty((0, 3), np.float32), made_by={})) == 0
    assert VectorStore.open(whole).dimension == 3


def stopping(replace, calls, stop):
    def stop_before(path, target):
        if next(calls) == stop:
            raise Killed
        replace(path, target)

    return stop_before


def test_a_chain_reads_stores_as_one(whole, tmp_path):
    other = VectorStore.write(tmp_path / "b", IDS[:3], unit_rows(3, seed=1), made_by={}, shard_rows=2)
    chain = StoreChain([VectorStore.open(whole), other])
    vectors = np.concatenate([unit_rows(), unit_rows(3, seed=1)]).astype(np.float16)
    assert (len(chain), chain.dimension) == (26, DIMENSION)
    assert [one.decode() for one in chain.ids] == [*IDS, *IDS[:3]]
    assert all((vectors[here] == block).all() for here, block in chain.blocks(4))
    assert [here.start for here, _ in chain.blocks(100)] == [0, 5, 10, 15, 20, 23, 25]
    at = np.array([25, 0, 23, 22, 0])
    assert (chain.take(at) == vectors[at]).all()
    assert len(StoreChain([])) == 0
    with pytest.raises(ValueError, match="stores of several dimensions"):
        StoreChain([other, VectorStore.write(tmp_path / "c", ["a"], np.ones((1, 1), np.float32), made_by={})])
