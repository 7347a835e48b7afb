"""The lines of M-BEIR's files, each parsed and checked by itself; an error names file, line and id."""

import codecs
import json
import re
import reprlib
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

MODALITIES = ("text", "image", "image,text")
Fields = dict[str, tuple[Callable[[Any], bool], str]]  # what a field's value must be, as a test and in words


def is_id(value: Any) -> bool:
    """Whether this can be a qid or did: a string that a line of a qrels file can name."""
    return isinstance(value, str) and value != "" and " " not in value and value.isprintable()


def is_text(value: Any) -> bool:
    """Whether this can be a text or a path: null, or a string without the lone surrogates that JSON can escape."""
    return value is None or (isinstance(value, str) and not re.search("[\ud800-\udfff]", value))


def are_ids(value: Any) -> bool:
    """Whether this can be a list of positives or negatives."""
    return isinstance(value, list) and all(map(is_id, value))


_ID = (is_id, "a string of printable characters without spaces")
_TEXT = (is_text, "a string or null that can be written as UTF-8")
_MODALITY = (lambda value: isinstance(value, str) and value in MODALITIES, f"one of {MODALITIES}")
CANDIDATE_FIELDS: Fields = {"did": _ID, "txt": _TEXT, "img_path": _TEXT, "modality": _MODALITY}
QUERY_FIELDS: Fields = {
    "qid": _ID,
    "query_txt": _TEXT,
    "query_img_path": _TEXT,
    "query_modality": _MODALITY,
    "pos_cand_list": (are_ids, "a list of dids: strings of printable characters without spaces"),
    "task_id": (lambda value: type(value) is int, "a number"),
}


def format_string(text: str | None) -> str:
    """Normalise a text as the reference does: no quotes around it, a capital first, a full stop last; None is ""."""
    text = (text or "").replace("\r", "").strip().strip('"')
    if not text:
        return ""
    text = text[0].upper() + text[1:]
    return text if text[-1] in ".?!" else text + "."


def format_query(text: str | None) -> str:
    """Normalise the text that follows an instruction.

    The reference formats ``<instruction> text`` as one string, so its text keeps the case of its first letter and
    whatever stands before it.
    """
    return format_string(f"<> {text or ''}")[len("<> ") :]


def lines_of(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Yield number (from 1), offset and bytes of every line that is not blank."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist. Complete the folder.")
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.isspace():
                yield number, offset, line
            offset += len(line)


def record_of(path: Path, number: int, line: bytes, fields: Fields) -> dict[str, Any]:
    """Parse one line of a query or pool file; it has all ``fields``, each as it must be, and may have more."""
    try:
        record = json.loads(decoded(path, number, line))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}:{number}: not JSON ({error}): {line[:80].decode(errors='replace')!r}. Is the file cut short?"
        ) from error
    if not isinstance(record, dict) or (missing := [field for field in fields if field not in record]):
        problem = f"lacks {', '.join(missing)}" if isinstance(record, dict) else "is not an object"
        raise ValueError(f"{path}:{number}: the record {problem}; needed are {', '.join(fields)} (null where empty).")
    for field, (holds, words) in fields.items():
        if not holds(record[field]):
            name = record[next(iter(fields))]
            raise ValueError(f"{path}:{number}: {name!r} has {field} {reprlib.repr(record[field])}, not {words}.")
    return record


def judgement_of(path: Path, number: int, line: bytes) -> tuple[str, str, int]:
    """Parse one line of a qrels file: qid, did, relevance."""
    columns = (text := decoded(path, number, line).strip()).split()
    if len(columns) != 5 or not re.fullmatch(r"-?\d+", columns[3]):
        raise ValueError(f"{path}:{number}: {text!r} is not of the form 'qid 0 did relevance task_id' (five columns).")
    return columns[0], columns[2], int(columns[3])


def prompts_of(path: Path, number: int, line: bytes) -> tuple[str, tuple[str, ...]]:
    """Parse one line of the instructions: its key, see :attr:`MBeir.instructions`, and its prompts."""
    columns = decoded(path, number, line).rstrip("\r\n").split("\t")
    if len(columns) < 5 or not any(prompt.strip() for prompt in columns[4:]):
        raise ValueError(
            f"{path}:{number}: {len(columns)} tab-separated columns {columns!r}; needed are query modality, candidate "
            "modality, name, dataset id and at least one prompt."
        )
    prompts = tuple(format_string(prompt) for prompt in columns[4:] if prompt.strip())
    return f"{columns[3]}, {columns[0]}, {columns[1]}", prompts


def check_content(path: Path, number: int, name: str, text: str | None, image: str | None) -> None:
    """Raise ``ValueError`` if there is neither text nor image."""
    if not image and not format_string(text):
        raise ValueError(f"{path}:{number}: {name!r} has neither text nor image. Give it one or remove the line.")


def decoded(path: Path, number: int, line: bytes) -> str:
    """The text of a line; one that is not UTF-8, or starts with a byte order mark, is refused."""
    if line.startswith((codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) and number == 1:
        raise ValueError(f"{path}:{number}: the file starts with a byte order mark; save it as UTF-8 without one.")
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}:{number}: not UTF-8 ({error}). Is the file cut short?") from error


class Ids:
    """Finds ids in an array by binary search: some 30 bytes an id, where a dict takes 150.

    Args:
        ids: (N,) numpy bytes, UTF-8.
    """

    def __init__(self, ids: np.ndarray) -> None:
        self._order = np.argsort(ids, kind="stable")
        self._sorted = ids[self._order]

    def positions(self, wanted: Sequence[str] | np.ndarray) -> np.ndarray:
        """Return (n,) int64, where each id stands (the first time, if it stands twice); -1 where it does not."""
        if not isinstance(wanted, np.ndarray):
            wanted = np.array([one.encode() for one in wanted], dtype=np.bytes_)
        if not len(self._sorted):
            return np.full(len(wanted), -1)
        # Cast by hand: a longer id among the wanted would have numpy copy all ids into wider ones.
        at = np.searchsorted(self._sorted, wanted.astype(self._sorted.dtype)).clip(max=len(self._sorted) - 1)
        return np.where(self._sorted[at] == wanted, self._order[at], -1)

    def repeated(self) -> np.ndarray:
        """Positions, ascending, of ids that stood earlier too."""
        return np.sort(self._order[1:][self._sorted[1:] == self._sorted[:-1]])


def id_array(ids: Iterable[str]) -> np.ndarray:
    """(N,) numpy bytes, built block by block so that no long list of strings comes to be."""
    rest, blocks = iter(ids), [np.empty(0, dtype="S1")]
    while block := [one.encode() for one in islice(rest, 65_536)]:
        blocks.append(np.array(block))
    return np.concatenate(blocks)


def first_lines(path: Path, field: str, names: Container[str]) -> dict[str, int]:
    """The first line of each id that stands in a field of a JSON-lines file."""
    found: dict[str, int] = {}
    for number, _, line in lines_of(path):
        try:
            name = json.loads(line)[field]
        except (KeyError, TypeError, ValueError):
            continue
        if name in names:
            found.setdefault(name, number)
    return found
