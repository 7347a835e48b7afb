"""Rows that cannot be trained on: either the first of them ends the run, or all are left out and listed in a file."""

import json
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from umarvel_hf.pictures import picture_problems
from umarvel_hf.store import whole_file

logger = logging.getLogger(__name__)


class Quarantine:
    """What becomes of a row that cannot be trained on.

    Args:
        path: JSON lines of ``file``, ``line``, ``id`` and ``reason``, sorted; rows of several sources, stages and runs
            are added to it, each once. None: the first such row raises.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = None if path is None else Path(path)
        self._found: list[str] = []

    def add(self, file: str | Path, line: int, name: str, reason: str) -> None:
        """Take note of a row that its source leaves out.

        Raises:
            ValueError: There is no file to write it to.
        """
        if self.path is None:
            raise ValueError(f"{file}:{line}: {name!r}: {reason}")
        logger.warning("%s:%d: %r is left out: %s", file, line, name, reason)
        entry = {"file": str(file), "line": line, "id": name, "reason": reason}
        self._found.append(json.dumps(entry, ensure_ascii=False))

    def write(self) -> None:
        """Bring the file up to date; with several ranks, the first does."""
        if self.path is None or not self._found or os.environ.get("RANK", "0") != "0":
            return
        known = self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else []
        entries = {tuple(json.loads(line).values()): line for line in (*known, *self._found)}
        with whole_file(self.path) as file:
            file.write("".join(f"{entries[key]}\n" for key in sorted(entries)).encode())

    def problems(self, pictures: Iterable[Any]) -> Iterator[str | None]:
        """What is wrong with each picture, None where it opens; without a file, none is tried."""
        if self.path is None:
            yield from (None for _ in pictures)
        else:
            yield from picture_problems(pictures)

    def unreadable(self, paths: Iterable[Path]) -> dict[Path, str]:
        """What is wrong with those pictures that do not open."""
        if self.path is None:
            return {}
        distinct = list(dict.fromkeys(paths))
        return {path: problem for path, problem in zip(distinct, self.problems(distinct), strict=True) if problem}


def bare(error: ValueError, path: Path, line: int) -> str:
    """What an error says, without the file and line that it names."""
    return str(error).removeprefix(f"{path}:{line}: ")
