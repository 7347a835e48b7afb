"""The cache folder, and folders in it that are there whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path


def cache_dir() -> Path:
    """``$UMARVEL_CACHE``, or ``~/.cache/umarvel_hf``."""
    return Path(os.environ.get("UMARVEL_CACHE") or Path.home() / ".cache" / "umarvel_hf")


def write_once(out: Path, fill: Callable[[Path], None]) -> Path:
    """Fill a folder beside ``out`` and rename it at the end; a folder that is there already is taken as it is.

    A folder gets its name only when it is complete, so one that was left half-way is never taken for a whole one, and
    of two processes that write the same folder one wins and both find it.
    """
    if out.is_dir():
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        fill(unfinished)
        unfinished.chmod(0o755)  # mkdtemp makes private folders
        try:
            unfinished.rename(out)
        except OSError:
            if not out.is_dir():
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return out
