"""Peak memory of what runs in a process of its own; without torch, which takes some itself."""

import resource
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any


def alone(function: Callable[..., Any], *given: Any) -> Any:
    """Call a function of a module in a process of its own, so that its memory is its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *given).result()


def peak_rss() -> int:
    """Most bytes that this process ever had resident, mapped files included."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return (1 if sys.platform == "darwin" else 1024) * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux tells getrusage the peak of the process that started this one, if that is higher.
    return 1024 * int(status.read_text().split("VmHWM:")[1].split()[0])
