"""Pairs of texts, or of texts and pictures, from plain files, folders or the Hub."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import numpy as np
from datasets import Dataset, DatasetDict, Features, Image, Value, load_dataset, load_from_disk

from umarvel_hf.data import Item
from umarvel_hf.messages import chat
from umarvel_hf.records import format_string, is_text, lines_of, record_of
from umarvel_hf.trainer.quarantine import Quarantine, bare

Direction = Literal["text-to-image", "image-to-text"]
READ_AT_ONCE = 1024


class Pairs:
    """Pairs of a query and what belongs to it, from a table of texts and pictures: :meth:`nli`, :meth:`captions`.

    Equal contents have equal ids, so that the loss takes no text for its own negative.

    Args:
        name: The group of the rows.
        path: Where the table comes from, for messages.
        table: Texts; pictures as paths, or as ``datasets.Image`` keeps them undecoded.
        lines: Where in the file the rows of the table stand; None: one after the other.
        columns: Column and kind (``text``, ``image``) of the table for each column of a row.
        images: The folder that paths are relative to.
        formatted: Texts get a capital and a full stop, as those of M-BEIR do.
        instruction: Of every query.
        quarantine: What becomes of rows that lack something, or whose picture does not open.
    """

    def __init__(
        self,
        name: str,
        path: str | Path,
        table: Dataset,
        lines: np.ndarray | None,
        columns: Mapping[str, tuple[str, str]],
        *,
        images: Path = Path(),
        formatted: bool = False,
        instruction: str | None = None,
        quarantine: Quarantine,
    ) -> None:
        self.name, self._path, self._table, self._lines = name, path, table, lines
        self.columns, self._columns, self.label_width = tuple(columns), dict(columns), len(columns)
        self._images, self._formatted, self._instruction = images, formatted, instruction
        kept: list[int] = []
        queries: list[int] = []
        for start in range(0, len(table), READ_AT_ONCE):
            numbers = range(start, min(start + READ_AT_ONCE, len(table)))
            rows = self._items(numbers)
            pictures = [item for row in rows for item in row.values() if isinstance(item, dict)]
            problems = iter(quarantine.problems([item["image"] for item in pictures]))
            for number, row in zip(numbers, rows, strict=True):
                reasons = [
                    next(problems)
                    if isinstance(item, dict)
                    else None
                    if item
                    else f"it has no {self._columns[column][0]!r}."
                    for column, item in row.items()
                ]
                if reason := next(filter(None, reasons), None):
                    quarantine.add(path, self._line(number), "", reason)
                else:
                    kept.append(number)
                    queries.append(_content_id(row["anchor"]))
        quarantine.write()
        if not kept:
            raise ValueError(f"{path} has no row that can be trained on.")
        self._kept = np.array(kept, dtype=np.int32)
        self._first = first_of(np.array(queries))
        self.groups = [name] * len(kept)

    @classmethod
    def nli(cls, path: str | Path, *, negatives: bool = False, quarantine: Quarantine | None = None) -> "Pairs":
        """Sentences of a csv or jsonl file with the columns ``sent0, sent1, hard_neg`` (recipe.md §5.4).

        Args:
            negatives: ``hard_neg`` is a hard negative; otherwise it need not be there.
            quarantine: What becomes of rows that lack something; None: the first of them raises.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file is neither csv nor jsonl or not UTF-8, a column is missing, a row is bad and is not to
                be left out, or none is left.
        """
        named = {"anchor": "sent0", "positive": "sent1", **({"negative_1": "hard_neg"} if negatives else {})}
        quarantine = quarantine or Quarantine()
        table, lines = _read_texts(Path(path), list(named.values()), quarantine)
        columns = {column: (name, "text") for column, name in named.items()}
        return cls("nli", path, table, lines, columns, quarantine=quarantine)

    @classmethod
    def captions(
        cls,
        source: str | Path,
        *,
        text: str = "text",
        image: str = "image",
        images: str | Path | None = None,
        direction: Direction = "text-to-image",
        instruction: str | None = None,
        quarantine: Quarantine | None = None,
    ) -> "Pairs":
        """Texts and pictures: a jsonl or csv file, Parquet, a folder that ``datasets`` reads, or a data set on the Hub.

        Args:
            text, image: Names of the columns.
            images: The folder that paths of pictures are relative to; None: that of the file.
            direction: Whether texts ask for pictures or pictures for texts.
            instruction: Of every query; None: they have none.
            quarantine: What becomes of rows that lack something, or whose picture does not open; None: the first that
                lacks something raises.

        Raises:
            FileNotFoundError: There is no such jsonl or csv file.
            ValueError: The source is of no kind that is read; otherwise as for :meth:`nli`.
        """
        quarantine, path, lines = quarantine or Quarantine(), Path(source), None
        if path.suffix in READERS:
            table, lines = _read_texts(path, [text, image], quarantine)
        else:
            table = _load(source)
            _check_columns(source, table.column_names, [text, image])
            table = table.select_columns([text, image])
            if isinstance(table.features[image], Image):
                table = table.cast_column(image, Image(decode=False))
        folder = Path(images) if images is not None else path.parent if path.is_file() else path
        kinds = {"text": (text, "text"), "image": (image, "image")}
        asked, found = direction.split("-to-")
        return cls(
            path.stem,
            source,
            table,
            lines,
            {"anchor": kinds[asked], "positive": kinds[found]},
            images=folder,
            formatted=True,
            instruction=instruction,
            quarantine=quarantine,
        )

    def __len__(self) -> int:
        return len(self._kept)

    def origin(self, number: int) -> str:
        """File and line of a pair."""
        return f"{self._path}:{self._line(self._kept[number])}"

    def rows(self, numbers: Sequence[int], seed: int, epoch: int) -> list[dict[str, Any]]:
        """Anchor, positive and negatives of pairs as chats, and the ids of their contents as ``label``."""
        drawn = []
        for number, items in zip(numbers, self._items(self._kept[list(numbers)].tolist()), strict=True):
            query, *candidates = items.values()
            chats = [chat(query, self._instruction), *map(chat, candidates)]
            label = [int(self._first[number]), *map(_content_id, candidates)]
            drawn.append(dict(zip((*self.columns, "label"), (*chats, label), strict=True)))
        return drawn

    def _items(self, numbers: Sequence[int]) -> list[dict[str, Item]]:
        """What the columns of these rows of the table show; "" where they show nothing."""
        values = self._table[numbers]
        return [
            {column: self._item(values[name][at], kind) for column, (name, kind) in self._columns.items()}
            for at in range(len(numbers))
        ]

    def _item(self, value: Any, kind: str) -> Item:
        if kind == "text":
            return format_string(value) if self._formatted else (value or "").strip()
        if isinstance(value, dict) and value["bytes"] is None:
            value = value["path"]
        return {"image": str(self._images / value) if isinstance(value, str) else value} if value else ""

    def _line(self, number: int) -> int:
        return int(number) + 1 if self._lines is None else int(self._lines[number])


def _read_csv(path: Path, quarantine: Quarantine) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        for record in reader:
            if None in record:
                quarantine.add(
                    path, reader.line_num, "", "it has more fields than the header; quote those with commas."
                )
            else:
                yield reader.line_num, record


def _read_jsonl(path: Path, quarantine: Quarantine) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, _, line in lines_of(path):
        try:
            yield number, record_of(path, number, line, {})
        except ValueError as error:
            quarantine.add(path, number, "", bare(error, path, number))


READERS = {".csv": _read_csv, ".jsonl": _read_jsonl}


def _read_texts(path: Path, columns: Sequence[str], quarantine: Quarantine) -> tuple[Dataset, np.ndarray]:
    """The columns of a file, and the line of every row."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; check the path (it is read from {Path.cwd()}).")
    if path.suffix not in READERS:
        raise ValueError(f"{path} is named {path.suffix or 'without an ending'}; give one of {', '.join(READERS)}.")
    texts: dict[str, list[str | None]] = {column: [] for column in columns}
    lines: list[int] = []
    try:
        for line, record in READERS[path.suffix](path, quarantine):
            if not lines:
                _check_columns(path, list(record), columns)
            lines.append(line)
            for column in columns:
                value = record.get(column)
                texts[column].append(value if isinstance(value, str) and is_text(value) else None)
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: after line {lines[-1] if lines else 0}: {error}. Save it as UTF-8.") from error
    return Dataset.from_dict(texts, features=Features(dict.fromkeys(columns, Value("string")))), np.array(lines)


def _check_columns(path: str | Path, found: Sequence[str], wanted: Sequence[str]) -> None:
    if missing := [column for column in wanted if column not in found]:
        raise ValueError(f"{path} has no column {', '.join(map(repr, missing))}; it has {', '.join(map(repr, found))}.")


def _load(source: str | Path) -> Dataset:
    """What ``datasets`` finds under a path or on the Hub; its training split, if it has several."""
    path = Path(source)
    try:
        if path.suffix == ".parquet":
            return Dataset.from_parquet(str(path))
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            saved = load_from_disk(str(path))
            return saved["train"] if isinstance(saved, DatasetDict) else saved
        return load_dataset(str(source), split="train")
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(
            f"{source} is no jsonl, csv or Parquet file, no folder that datasets reads and no data set that the Hub "
            f"gives ({error})."
        ) from error


def first_of(names: np.ndarray) -> np.ndarray:
    """(N,) int32, for every row the number of the first with its name."""
    _, first, inverse = np.unique(names, return_index=True, return_inverse=True)
    return first[inverse].astype(np.int32)


def _content_id(item: Item) -> int:
    """63 bits of what an item shows; of a picture, its bytes or its path."""
    content = item["image"] if isinstance(item, dict) else item
    data = content.encode() if isinstance(content, str) else content["bytes"]
    kind = b"image" if isinstance(item, dict) else b"text"
    return int.from_bytes(blake2b(kind + b"\0" + data, digest_size=8).digest()) >> 1
