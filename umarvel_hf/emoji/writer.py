"""Writes the benchmark: to a folder of one's choice, or once to the cache."""

from __future__ import annotations

import logging
from pathlib import Path

from umarvel_hf.emoji.cache import cache_dir, write_once

logger = logging.getLogger(__name__)

# sha256 over the names and contents of all written files; the cached copy is named by it. A test compares it with what
# is written: whoever changes the benchmark changes this line.
TREE_SHA256 = "0a7fafcb201613a6c25d6462b2f162213f46709e4d5ed4c9302942209cd0888b"


def benchmark_dir() -> Path:
    """The cached benchmark, written on first use (126 MB) to ``$UMARVEL_CACHE`` or ``~/.cache/umarvel_hf``."""
    return write_once(cache_dir() / f"emoji-{TREE_SHA256[:12]}", write_files)


def write_benchmark(out: Path) -> Path:
    """Write the benchmark in M-BEIR's layout to ``out``, which must be missing or empty, and return ``out``.

    ``out`` appears once everything is written.
    """
    out = Path(out)
    if out.exists():
        if any(out.iterdir()):
            raise FileExistsError(f"{out} is not empty. Pass a folder that does not exist yet.")
        out.rmdir()
    return write_once(out, write_files)


def write_files(root: Path) -> None:
    """Write everything below ``root``, an empty folder."""
    from umarvel_hf.emoji import concept_tasks, phrases, scene_tasks
    from umarvel_hf.emoji.dataset import write_lines, write_union
    from umarvel_hf.emoji.pack import Pack

    def save(path: str, content: bytes) -> None:
        target = root / path
        if target.parent not in folders:
            target.parent.mkdir(parents=True)
            folders.add(target.parent)
        target.write_bytes(content)

    logger.info("writing the emoji benchmark to %s", root)
    folders: set[Path] = set()
    with Pack() as pack:
        datasets = [*concept_tasks.build(pack, save), scene_tasks.build(pack, save)]
    for dataset in datasets:
        dataset.write(root)
    write_union(root, datasets)
    tables = {
        dataset.name: (
            dataset.id,
            phrases.SCENE_INSTRUCTIONS if dataset.name == scene_tasks.NAME else phrases.CONCEPT_INSTRUCTIONS,
        )
        for dataset in datasets
    }
    write_lines(root / "instructions" / "query_instructions.tsv", phrases.instructions_tsv(tables))
