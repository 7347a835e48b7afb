"""What a stage was told to do and whether it is done, beside its results: how a run that was stopped goes on."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from umarvel_hf.store import differences, whole_file

NAME = "manifest.json"


@dataclass
class Manifest:
    """A stage's manifest.

    Args:
        facts: All that decides what comes out: settings, checksums of data, models from outside the run by name only,
            the digest of every stage it builds on.
        finished: Whether the results are whole.
        record: What the stage measured; it becomes a line of ``history.jsonl``.
    """

    facts: dict[str, str]
    finished: bool = False
    record: dict[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Stands for the facts where another stage builds on this one."""
        return hashlib.sha256(json.dumps(self.facts, sort_keys=True).encode()).hexdigest()[:16]

    def save(self, folder: Path) -> None:
        """Write it, whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(folder / NAME) as file:
            file.write(json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False).encode())


def begin(folder: Path, facts: dict[str, str]) -> Manifest:
    """The manifest of the stage in ``folder``; a new one where nothing was done yet.

    Raises:
        ValueError: The stage was begun with other settings or inputs; every difference is named.
        FileExistsError: ``folder`` holds files that are of no run.
    """
    path = folder / NAME
    if not path.is_file():
        if foreign := [one.name for one in folder.glob("*") if not one.name.startswith(NAME)]:
            raise FileExistsError(
                f"{folder} holds {foreign[0]!r} and no {NAME}, so it is of no run and is left alone. Name another "
                "--out, or remove it."
            )
        return Manifest(facts)
    try:
        manifest = Manifest(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is no manifest ({error}). Remove {folder} to run this stage anew.") from error
    if told := differences(manifest.facts, facts):
        raise ValueError(
            f"{folder} was begun with other settings: {told}. Go on with the recipe and the inputs "
            "as they were, remove this folder and those after it to run them anew, or name another --out."
        )
    return manifest


def flat(value: Any, name: str = "") -> dict[str, str]:
    """Nested settings as lines: ``{"training.learning_rate": "0.001"}``."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, list | tuple):
        value = {str(at): one for at, one in enumerate(value)}
    if not isinstance(value, dict):
        return {name: json.dumps(value, ensure_ascii=False)}
    lines: dict[str, str] = {}
    for key, one in value.items():
        lines |= flat(one, f"{name}.{key}" if name else str(key))
    return lines


def checksum(path: Path) -> str:
    """Of a file, or of all files of a folder with their names; ``not here`` where there is none."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    if not path.is_dir():
        return "not here"
    parts = [f"{one.relative_to(path)} {checksum(one)}" for one in sorted(path.rglob("*")) if one.is_file()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
