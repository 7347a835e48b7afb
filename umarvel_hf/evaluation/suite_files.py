"""Records of the zero-shot sets' files, as their authors publish them, each checked; an error names file and line."""

import csv
import io
import json
import pickle
import re
import reprlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from umarvel_hf.data import first_repeated
from umarvel_hf.records import decoded, is_text, lines_of

WORDS = {str: "a string that can be written as UTF-8", int: "a whole number", list: "a list", dict: "an object"}
SPACE = re.compile(r"[ \t\r\n]*")
Schema = Any  # a type, a dict of schemas by field, or [schema] for a list of them


@dataclass(frozen=True)
class Record:
    """One record of a file: where it stands, such as ``captions.json:3, record 2``, and what it says.

    Args:
        left_out: Why it is not asked; "" where it is.
        key: Under which it stands in an object.
    """

    place: str
    value: Any
    left_out: str = ""
    key: str | None = None


Reader = Callable[[Path], Iterator[Record]]


def json_records(*keys: str) -> Reader:
    """A reader of the values of a JSON file's array or object, or of one that stands under ``keys`` in it."""

    def read(path: Path) -> Iterator[Record]:
        text = text_of(path)
        _parsed(text, str(path))
        at = _after_space(text, 0)
        for key in keys:
            found = [start for name, _, start in _children(text, at) if name == key] if text[at] == "{" else []
            if not found:
                raise ValueError(f"{path}:{_line(text, at)}: lacks {key!r}; needed is {'.'.join(keys)}.")
            at = found[-1]
        if text[at] not in "[{":
            raise ValueError(f"{path}:{_line(text, at)}: {text[at : at + 40]!r} is neither an array nor an object.")
        line, before = 1, 0
        for number, (name, value, start) in enumerate(_children(text, at)):
            line, before = line + text.count("\n", before, start), start
            place = f"{path}:{line}, record {number if name is None else repr(name)}"
            yield Record(place, value, key=name)

    return read


def json_lines(path: Path) -> Iterator[Record]:
    """The lines of a JSON-lines file."""
    for number, _, line in lines_of(path):
        yield Record(f"{path}:{number}", _parsed(decoded(path, number, line), str(path), number))


def csv_records(path: Path) -> Iterator[Record]:
    """The rows of a CSV file with a head, each a dict of strings; a row may run over several lines."""
    rows = csv.DictReader(io.StringIO(text_of(path), newline=""), strict=True)
    try:
        for row in rows:
            if None in row or None in row.values():
                raise ValueError(f"{path}:{rows.line_num}: not as many columns as the head has ({rows.fieldnames}).")
            yield Record(f"{path}:{rows.line_num}", row)
    except csv.Error as error:
        raise ValueError(f"{path}:{rows.reader.line_num}: not CSV ({error}).") from error


def text_lines(path: Path) -> Iterator[Record]:
    """The lines of a text file, without space around them."""
    for number, _, line in lines_of(path):
        yield Record(f"{path}:{number}", decoded(path, number, line).strip())


def numbered_files(path: Path) -> Iterator[Record]:
    """Of a folder of ``1.txt``, ``2.txt``, … the number and the first line of each, in the order of the numbers.

    Raises:
        ValueError: A number is missing in between, a name is no such number, or a first line is blank.
        FileNotFoundError: There is none.
    """
    names = {file.stem for file in path.glob("*.txt")}
    if not names:
        raise FileNotFoundError(f"{path} holds no 1.txt, 2.txt, …: complete the folder.")
    numbers = [str(number) for number in range(1, len(names) + 1)]
    if other := sorted(names - set(numbers)):
        raise ValueError(
            f"{path}: {len(names):,} files must be 1.txt to {len(names)}.txt, but {other[0]}.txt is among them. "
            "Complete the folder."
        )
    for number in numbers:
        file = path / f"{number}.txt"
        first = text_of(file).partition("\n")[0].strip()
        if not first:
            raise ValueError(f"{file}:1: the line is blank.")
        yield Record(f"{file}:1", {"number": int(number), "text": first})


def tensor_file(path: Path) -> Any:
    """What a file of ``torch.save`` holds, if that is plain data; nothing in it is run.

    Raises:
        ValueError: It holds anything but tensors, numbers, strings and containers of them, or is damaged.
        FileNotFoundError: It is not there.
    """
    import torch  # here, for the other files are read without it

    _there(path)
    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # torch raises what its unpickler, zip reader or storage does
        why = "it names classes or functions, or is cut short"  # torch's own words advise to trust the file
        if not isinstance(error, pickle.UnpicklingError):
            why = str(error).partition("\n")[0]
        raise ValueError(f"{path}: not plain data that torch.save wrote ({why}). Nothing in it was run.") from error


class _PlainUnpickler(pickle.Unpickler):
    """Reads what is built of strings, numbers, lists and dicts; asks for no class or function, so it can run none."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, and plain data ask for nothing")


def pickled_data(path: Path) -> Any:
    """What a pickle holds, if that is plain data; any name in it of a class or function is refused before it is found.

    Raises:
        ValueError: It names one, or is damaged.
        FileNotFoundError: It is not there.
    """
    _there(path)
    with path.open("rb") as file:
        try:
            return _PlainUnpickler(file).load()
        except Exception as error:  # a damaged pickle raises whatever its opcodes meet
            raise ValueError(f"{path}: not plain pickled data ({error}). Nothing in it was run.") from error


def checked(record: Record, schema: Schema) -> Any:
    """The value of a record, if it is as its set's files are.

    Args:
        schema: A type; a dict of schemas, for an object with these fields or more; ``[schema]``, for a list; a tuple
            of schemas, for a list with these entries, where ``object`` stands for any.

    Raises:
        ValueError: It is not; file, line and field are named.
    """
    _check(record.value, schema, record.place, "")
    return record.value


def _check(value: Any, schema: Schema, place: str, name: str) -> None:
    kind: type = schema if isinstance(schema, type) else list if isinstance(schema, list | tuple) else dict
    fits: bool = isinstance(value, kind) and not (kind is int and isinstance(value, bool))
    if not fits or (kind is str and not is_text(value)):
        raise ValueError(f"{place}: {name or 'the record'} is {reprlib.repr(value)}, not {WORDS[kind]}.")
    if isinstance(schema, Mapping):
        for field, inner in schema.items():
            within = f"{name}.{field}" if name else field
            if field not in value:
                raise ValueError(f"{place}: lacks {within}; needed are {', '.join(map(str, schema))}.")
            _check(value[field], inner, place, within)
    if isinstance(schema, list):
        for at, one in enumerate(value):
            _check(one, schema[0], place, f"{name}[{at}]")
    if isinstance(schema, tuple):
        if len(value) < len(schema):
            raise ValueError(f"{place}: {name or 'the record'} has {len(value)} entries; needed are {len(schema)}.")
        for at, inner in enumerate(schema):
            _check(value[at], inner, place, f"{name}[{at}]")


def text_of(path: Path) -> str:
    """A file of text, UTF-8.

    Raises:
        ValueError: A line is not UTF-8, or the first has a byte order mark.
        FileNotFoundError: It is not there.
    """
    _there(path)
    content = path.read_bytes()
    try:
        return decoded(path, 1, content)
    except ValueError:
        for number, line in enumerate(content.splitlines(), start=1):
            decoded(path, number, line)
        raise


def below(root: Path, place: str, name: str) -> Path:
    """A file below a folder.

    Raises:
        ValueError: The name leads out of it.
        FileNotFoundError: There is no such file; who names it is told.
    """
    path = root / name
    if ".." in Path(name).parts or Path(name).is_absolute():
        raise ValueError(f"{place}: names {name!r}, which does not lie below {root}.")
    try:
        there = path.is_file()
    except (OSError, ValueError):  # too long, or with a NUL
        there = False
    if not there:
        raise FileNotFoundError(f"{path} does not exist, but {place} names it. Complete the folder.")
    return path


def _there(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist. Complete the folder; docs/how-to/zero-shot.md says from where."
        )


def _parsed(text: str, path: str, line: int | None = None) -> Any:
    """JSON without a key twice in one object.

    Args:
        line: That the text is, of a file of several.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        place = f"{path}:{error.lineno if line is None else line}"
        raise ValueError(f"{place}: not JSON ({error.msg}). Is the file cut short?") from error
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, thousands of brackets
        raise ValueError(f"{path if line is None else f'{path}:{line}'}: cannot be read ({error}).") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"an object has {first_repeated([key for key, _ in pairs])!r} twice; remove one of them")
    return found


def _children(text: str, start: int) -> Iterator[tuple[str | None, Any, int]]:
    """Of the array or object that begins at ``start``, in JSON that was found to be sound: key, value, its place."""
    decode = json.JSONDecoder().raw_decode
    at = _after_space(text, start + 1)
    while text[at] not in "]}":
        key = None
        if text[start] == "{":
            key, at = decode(text, at)
            at = _after_space(text, _after_space(text, at) + 1)  # over the colon
        value, end = decode(text, at)
        yield key, value, at
        at = _after_space(text, end)
        if text[at] == ",":
            at = _after_space(text, at + 1)


def _after_space(text: str, at: int) -> int:
    return SPACE.match(text, at).end()  # type: ignore[union-attr]  # it matches nothing, too


def _line(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1
