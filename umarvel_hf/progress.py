"""Progress of what takes long: a bar on a terminal; elsewhere, as in a log file, a line now and then."""

import sys
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 30.0
SECONDS_BEFORE_THE_FIRST = 3.0  # so that what is quick says nothing


class Progress(tqdm):
    """``tqdm`` on stderr, whose bar is redrawn on a terminal only.

    Args:
        iterable, desc, total: As in ``tqdm``.
        show: Whether there is anything to see.
        kwargs: As in ``tqdm``.
    """

    def __init__(
        self,
        iterable: Any = None,
        desc: str | None = None,
        total: float | None = None,
        *,
        show: bool | None,
        **kwargs: Any,
    ) -> None:
        if not sys.stderr.isatty():
            kwargs |= {"mininterval": SECONDS_BETWEEN_LINES, "maxinterval": SECONDS_BETWEEN_LINES, "ncols": 0}
            kwargs |= {"delay": SECONDS_BEFORE_THE_FIRST}
        super().__init__(iterable, desc, total, disable=not show, file=sys.stderr, **kwargs)

    @staticmethod
    def status_printer(file: Any) -> Callable[[str], None]:
        """What shows a state: in place on a terminal, as a line of its own elsewhere."""
        if file.isatty():
            return tqdm.status_printer(file)

        def print_line(state: str) -> None:
            if state.strip():
                print(state.strip(), file=file, flush=True)

        return print_line
