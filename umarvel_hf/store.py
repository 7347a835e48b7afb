"""The store of vectors: shards of half-precision vectors and their ids on disk, and a manifest of what made them."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from filelock import FileLock, Timeout

from umarvel_hf.records import Ids, id_array

FORMAT = 2  # 1 was a FAISS file
MANIFEST, KINDS = "manifest.json", ("vectors", "ids")
SHARD_ROWS = 65_536
UNIT_TOLERANCE = 1e-3  # half-precision embeddings that were normalised before they were rounded still pass
DAMAGED = "Put back the file that was written, or remove the folder and encode anew."

Manifest = dict[str, Any]


class Vectors:
    """Unit vectors (N, D) float16 with their ids, in files that are read as they are asked for; ids are in memory.

    Attributes:
        ids: (N,) numpy bytes, UTF-8.
        dimension: D.
    """

    def __init__(self, ids: np.ndarray, dimension: int, files: Sequence[tuple[Path, int]]) -> None:
        self.ids, self.dimension = ids, dimension
        self._files = list(files)  # and the rows that each holds
        self._starts = np.cumsum([0, *(rows for _, rows in files)])

    def __len__(self) -> int:
        return len(self.ids)

    def blocks(self, rows: int) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield all vectors in order: where they stand, and (n, D) float16 with n at most ``rows``.

        A block is mapped from its file and unmapped with the last reference to it: keep none, and memory stays small.
        """
        for (path, count), first in zip(self._files, self._starts.tolist(), strict=False):
            for start in range(0, count, rows):
                stop = min(start + rows, count)
                yield slice(first + start, first + stop), _mapped(path)[start:stop]

    def take(self, positions: np.ndarray) -> np.ndarray:
        """The vectors at positions, in their order: (n, D) float32."""
        positions = np.asarray(positions, dtype=np.int64)
        if ((positions < 0) | (positions >= len(self))).any():
            raise IndexError(
                f"positions run from {positions.min():,} to {positions.max():,}; there are {len(self):,} vectors."
            )
        taken = np.empty((len(positions), self.dimension), dtype=np.float32)
        files = np.searchsorted(self._starts, positions, side="right") - 1
        for file in np.unique(files):
            here = files == file
            taken[here] = _mapped(self._files[file][0])[positions[here] - self._starts[file]]
        return taken


class VectorStore(Vectors):
    """Vectors under unique ids in a folder, a shard a file, and ``manifest.json``, which says what made them.

    They are of unit length and stored as float16.

    The manifest is replaced last and makes a shard exist: whatever else lies in the folder does not count.
    Make one with :func:`fill_store`, :meth:`write` or :meth:`open`.
    """

    def __init__(self, folder: Path, manifest: Manifest, ids: np.ndarray) -> None:
        shards = zip(manifest["shards"], _cut(manifest["count"], manifest["shard_rows"]), strict=True)
        files = [
            (_file(folder, "vectors", at, shard["vectors"]), rows.stop - rows.start)
            for at, (shard, rows) in enumerate(shards)
        ]
        super().__init__(ids, manifest["dimension"], files)
        self.folder = folder
        self.made_by: dict[str, str] = manifest["made_by"]

    @classmethod
    def open(cls, folder: str | Path, *, made_by: Mapping[str, str] | None = None) -> "VectorStore":
        """Open a complete store after reading every file once to compare its checksum.

        Args:
            made_by: What must have made the vectors; None: whatever did.

        Raises:
            FileNotFoundError: No store, or one of its files is gone.
            ValueError: It is unfinished, damaged, of another format, or something else made it.
        """
        folder = Path(folder)
        manifest = _read(folder)
        if made_by is not None:
            _refuse_differences(str(folder), manifest["made_by"], made_by)
        finished, planned = len(manifest["shards"]), len(_cut(manifest["count"], manifest["shard_rows"]))
        if finished < planned:
            raise ValueError(
                f"{folder} is unfinished: {finished:,} of {planned:,} shards are there. Run again what fills it; it "
                "goes on where it stopped."
            )
        return cls(folder, manifest, _verified_ids(folder, manifest))

    @classmethod
    def write(
        cls,
        folder: str | Path,
        ids: Sequence[str] | np.ndarray,
        vectors: np.ndarray,
        *,
        made_by: Mapping[str, str],
        shard_rows: int = SHARD_ROWS,
    ) -> "VectorStore":
        """Write all at once; a crash leaves either the store that was in the folder before or this one.

        Args:
            ids: N unique ids, str or an array of bytes (UTF-8).
            vectors: (N, D), of unit length.
            made_by: What shaped the vectors; :meth:`open` compares it.
            shard_rows: Vectors a file.

        Raises:
            ValueError: Other numbers of ids and vectors, an id that is empty or comes twice, vectors that are not of
                unit length, ``shard_rows`` below 1.
            BlockingIOError: Another process is filling this folder.
        """
        folder, names = Path(folder), as_ids(ids)
        if vectors.ndim != 2 or len(vectors) != len(names):
            raise ValueError(f"{len(names):,} ids for vectors of shape {vectors.shape}. Pass one id per vector.")
        manifest = _plan(made_by, len(names), shard_rows) | {"dimension": vectors.shape[1]}
        with locked(folder):
            for at, rows in enumerate(_cut(len(names), shard_rows)):
                manifest["shards"].append(_write_shard(folder, at, names[rows], vectors[rows], manifest["dimension"]))
            _publish(folder, manifest)
            _remove_stale(folder, manifest)
        return cls(folder, manifest, names)


class StoreChain(Vectors):
    """Stores one after the other, read as one. Within a store ids are unique, over all of them they need not be."""

    def __init__(self, stores: Sequence[VectorStore]) -> None:
        if len(dimensions := {store.dimension for store in stores}) > 1:
            folders = ", ".join(f"{store.folder} ({store.dimension})" for store in stores)
            raise ValueError(f"stores of several dimensions: {folders}. Encode all with one model.")
        ids = np.concatenate([np.empty(0, dtype="S1"), *(store.ids for store in stores)])
        super().__init__(ids, max(dimensions, default=0), [file for store in stores for file in store._files])


def fill_store(
    folder: str | Path,
    ids: Sequence[str] | np.ndarray,
    encode: Callable[[slice], np.ndarray],
    *,
    made_by: Mapping[str, str],
    digest: Callable[[slice], str],
    shard_rows: int = SHARD_ROWS,
) -> VectorStore:
    """Fill a store shard by shard; stopped anywhere and called again, it goes on at the first unfinished shard.

    Args:
        ids: N unique ids, str or an array of bytes (UTF-8).
        encode: From rows to their unit vectors (n, D); a shard at a time is in memory.
        made_by: All that shapes a vector besides its input: weights, code, prompt, pixel limits and so on.
        digest: From rows to a checksum of their inputs.

    Raises:
        ValueError: The folder holds a store that was made otherwise (each difference is shown) or is damaged; ids or
            vectors cannot be stored.
        BlockingIOError: Another process is filling this folder.
    """
    folder, names = Path(folder), as_ids(ids)
    if not len(names):
        raise ValueError(f"There is nothing to encode into {folder}: the list of ids is empty.")
    manifest = _plan(made_by, len(names), shard_rows)
    with locked(folder):
        if (folder / MANIFEST).is_file():
            stored = _read(folder)
            _refuse_differences(str(folder), _facts(stored), _facts(manifest))
            manifest = stored
            _refuse_other_inputs(folder, manifest, names, digest)
        finished = len(manifest["shards"])
        for at, rows in list(enumerate(_cut(len(names), shard_rows)))[finished:]:
            inputs, vectors = digest(rows), np.asarray(encode(rows))
            shard = _write_shard(folder, at, names[rows], vectors, manifest["dimension"])
            manifest["dimension"] = vectors.shape[1]
            manifest["shards"].append(shard | {"inputs": inputs})
            _publish(folder, manifest)
        _remove_stale(folder, manifest)
    return VectorStore(folder, manifest, names)


def as_ids(ids: Sequence[str] | np.ndarray) -> np.ndarray:
    """Ids as an array of bytes (N,), UTF-8 and no wider than needed; refuses empty and repeated ones."""
    for at, one in enumerate(ids):
        if not one or ("\0" if isinstance(one, str) else b"\0") in one:
            raise ValueError(f"id number {at:,} is {one!r}. An id needs a character, and none of them may be NUL.")
    names = ids if isinstance(ids, np.ndarray) and ids.dtype.kind == "S" else id_array(ids)
    names = names.astype(f"S{np.strings.str_len(names).max(initial=1)}", copy=False)
    if len(repeated := Ids(names).repeated()):
        raise ValueError(f"id {names[repeated[0]].decode()!r} occurs twice among {len(names):,}. Ids must be unique.")
    return names


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which gets its name, in place of what had it, once it is whole and on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)  # it may be what filled the disk
        raise


def check_unit(embeddings: np.ndarray, remedy: str) -> None:
    """Refuse embeddings (N, D) that are not of unit length, NaN and infinity among them."""
    wide = np.result_type(embeddings, np.float32)
    lengths = np.sqrt(np.einsum("nd,nd->n", embeddings, embeddings, dtype=wide))
    wrong = ~(np.abs(lengths - 1) <= UNIT_TOLERANCE)  # so that a NaN is wrong too
    if wrong.any():
        first = int(np.argmax(wrong))
        raise ValueError(
            f"{int(wrong.sum()):,} of {len(embeddings):,} embeddings are not of unit length, the first of them number "
            f"{first} with length {lengths[first]:.4g}. {remedy}"
        )


def _mapped(path: Path) -> np.ndarray:
    mapped: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    return mapped


def _plan(made_by: Mapping[str, str], count: int, shard_rows: int) -> Manifest:
    if shard_rows < 1:
        raise ValueError(f"shard_rows is {shard_rows}; a shard needs at least 1.")
    return {
        "format": FORMAT,
        "made_by": dict(made_by),
        "dimension": None,  # known with the first shard
        "dtype": "float16",
        "count": count,
        "shard_rows": shard_rows,
        "shards": [],
    }


def _cut(count: int, shard_rows: int) -> list[slice]:
    return [slice(start, min(start + shard_rows, count)) for start in range(0, count, shard_rows)]


def _file(folder: Path, kind: str, shard: int, checksum: str) -> Path:
    return folder / f"{kind}-{shard:05d}-{checksum[:12]}.npy"


def _read(folder: Path) -> Manifest:
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist. Pass a folder that holds a vector store.")
    manifest: Manifest = json.loads(path.read_text(encoding="utf-8"))
    if manifest.get("format") != FORMAT:
        raise ValueError(
            f"{path} has format {manifest.get('format')!r}; this version reads {FORMAT}. Encode anew, into another "
            "folder."
        )
    return manifest


def _verified_ids(folder: Path, manifest: Manifest) -> np.ndarray:
    """The ids of the finished shards, every file of which is compared with its checksum first."""
    parts = [np.empty(0, dtype="S1")]
    cut = _cut(manifest["count"], manifest["shard_rows"])
    for at, (rows, shard) in enumerate(zip(cut, manifest["shards"], strict=False)):  # fewer shards while unfinished
        paths = [_file(folder, kind, at, shard[kind]) for kind in KINDS]
        for path, kind in zip(paths, KINDS, strict=True):
            if not path.is_file():
                raise FileNotFoundError(f"{path} does not exist, but {MANIFEST} names it. {DAMAGED}")
            if (found := _checksum(path)) != shard[kind]:
                raise ValueError(f"{path} has sha256 {found}, {MANIFEST} says {shard[kind]}. {DAMAGED}")
        vectors, ids = map(_mapped, paths)
        count = rows.stop - rows.start
        stored = (vectors.shape, vectors.dtype.name, ids.shape)
        if stored != (expected := ((count, manifest["dimension"]), manifest["dtype"], (count,))):
            raise ValueError(
                f"{folder}, shard {at}: vectors (shape, dtype) and ids (shape) are {stored}, {MANIFEST} says "
                f"{expected}. {DAMAGED}"
            )
        parts.append(ids)
    return np.concatenate(parts)


def _facts(manifest: Manifest) -> dict[str, Any]:
    made_by = {f"made_by {name}": value for name, value in manifest["made_by"].items()}
    return {"count": manifest["count"], "rows a shard": manifest["shard_rows"], **made_by}


def _refuse_differences(where: str, stored: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    if told := differences(stored, asked):
        raise ValueError(
            f"{where} holds other vectors than those asked for: {told}. Name another folder, or remove this one."
        )


def _refuse_other_inputs(folder: Path, manifest: Manifest, names: np.ndarray, digest: Callable[[slice], str]) -> None:
    stored = _verified_ids(folder, manifest)
    rows_a_shard = manifest["shard_rows"]
    if len(other := np.flatnonzero(stored != names[: len(stored)])):
        shard, row = divmod(int(other[0]), rows_a_shard)
        ids = ({f"id of row {row}": array[other[0]].decode()} for array in (stored, names))
        _refuse_differences(f"{folder}, shard {shard},", *ids)
    for at, rows in enumerate(_cut(len(stored), rows_a_shard)):
        inputs = {"digest of the inputs": manifest["shards"][at].get("inputs")}
        _refuse_differences(f"{folder}, shard {at},", inputs, {"digest of the inputs": digest(rows)})


def differences(stored: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """What differs, in words, such as ``"depth was 20 and is 5; seed was 4 and is 5"``; empty where nothing does."""
    names = [name for name in sorted({*stored, *asked}) if stored.get(name) != asked.get(name)]
    values = [(name, *(facts.get(name, "not given") for facts in (stored, asked))) for name in names]
    return "; ".join(f"{name} was {was} and is {now}" for name, was, now in values)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make a folder one's own until the end; BlockingIOError where another process has it."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):  # the system lets go of it with the process, however that ends
            yield
    except Timeout as error:
        raise BlockingIOError(
            f"{folder} is being filled by another process. Wait for it, or name another folder."
        ) from error


def _write_shard(
    folder: Path, at: int, names: np.ndarray, vectors: np.ndarray, dimension: int | None
) -> dict[str, Any]:
    if vectors.ndim != 2 or len(vectors) != len(names) or dimension not in (None, vectors.shape[1]):
        raise ValueError(
            f"shard {at} of {folder} needs vectors of shape ({len(names)}, {dimension or 'D'}), but got "
            f"{vectors.shape}. Encode all shards with one model."
        )
    check_unit(vectors, f"Shard {at} of {folder} was not written: normalise the vectors in the encoder.")
    shard: dict[str, Any] = {"rows": len(names)}
    for kind, array in (("vectors", vectors.astype(np.float16, copy=False)), ("ids", names)):
        content = BytesIO()
        np.save(content, array, allow_pickle=False)
        shard[kind] = hashlib.sha256(content.getbuffer()).hexdigest()
        with whole_file(_file(folder, kind, at, shard[kind])) as file:
            file.write(content.getbuffer())
    return shard


def _publish(folder: Path, manifest: Manifest) -> None:
    content = json.dumps(manifest, indent=1, ensure_ascii=False)
    with whole_file(folder / MANIFEST) as file:
        file.write(content.encode())


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remove_stale(folder: Path, manifest: Manifest) -> None:
    """Remove what earlier stores and broken-off writes left."""
    shards = enumerate(manifest["shards"])
    current = {_file(folder, kind, at, shard[kind]) for at, shard in shards for kind in KINDS}
    for path in [*folder.glob("vectors-*"), *folder.glob("ids-*")]:
        if path not in current:
            path.unlink()
