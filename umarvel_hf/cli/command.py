"""How a verb becomes a command: its options, its help, what it prints, and one line for what goes wrong."""

import contextlib
import functools
import inspect
import io
import json
import logging
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import typer

# Nothing heavy is imported here or by the verbs' modules: `umarvel --help` answers at once.

Verb = TypeVar("Verb", bound=Callable[..., "Told"])
PROGRAM, STOPPED = "umarvel", 130
STATUS = "Exit status: 0; 1 where audit or doctor found something wrong; 2 where the input was; 130 when stopped."

application = typer.Typer(
    help="Universal multimodal retrieval: one embedder for text, pictures and both.",
    epilog=f"{STATUS} Every verb has --help with an example, and --json.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
EXAMPLES: dict[str, str] = {}  # by verb
COMMAND: ContextVar[str] = ContextVar("command")  # as it was given; results tell how they were made


@dataclass(frozen=True)
class Told:
    """What a verb has to say.

    Args:
        text: For people.
        facts: For programs: of JSON's own types, or JSON that is written already.
        status: The exit status.
    """

    text: str
    facts: Any
    status: int = 0


def verb(example: str) -> Callable[[Verb], Verb]:
    """Make a function a verb of the command line: its name, parameters and docstring are those of the command."""

    def register(function: Verb) -> Verb:
        name = function.__name__
        EXAMPLES[name] = example

        @functools.wraps(function)
        def run(json: bool, **options: Any) -> int:
            if not sys.stderr.isatty():
                from huggingface_hub.utils import disable_progress_bars  # transformers asks it, too

                disable_progress_bars()
            with contextlib.redirect_stdout(sys.stderr):  # what others print, such as a trainer, is no result
                told = function(**options)
            print((told.facts if isinstance(told.facts, str) else _as_json(told.facts)) if json else told.text)
            return told.status

        own = inspect.signature(function)
        option = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
        asked = inspect.Parameter("json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=option)
        run.__signature__ = own.replace(parameters=[*own.parameters.values(), asked])  # type: ignore[attr-defined]
        application.command(name, short_help=inspect.getdoc(function), epilog=f"Example: {example}")(run)
        return function

    return register


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb.

    Returns:
        0; 1 where ``audit`` or ``doctor`` found something wrong; 2 where the input was wrong, and one line on stderr
        says what to do; 130 when stopped.
    """
    import umarvel_hf.cli.verbs  # noqa: F401  (registers them)

    given = list(sys.argv[1:] if arguments is None else arguments)
    COMMAND.set(shlex.join([PROGRAM, *given]))
    _quiet()
    try:
        status = int(application(args=given, prog_name=PROGRAM, standalone_mode=False) or 0)
        return _complain("stopped", STOPPED) if status == STOPPED else status
    except typer.TyperException as error:
        verb = f" {given[0]}" if given and given[0] in EXAMPLES else ""
        return _complain(
            f"{error.format_message().replace('Value error, ', '').rstrip('.')}. See `{PROGRAM}{verb} --help`.", 2
        )
    except Exception as error:
        from safetensors import SafetensorError

        if not isinstance(error, ValueError | TypeError | OSError | ImportError | SafetensorError):
            raise
        damaged = "a weights file is damaged; copy it again: " if isinstance(error, SafetensorError) else ""
        return _complain(f"{damaged}{error}", 2)


def _show_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"umarvel_hf {version('umarvel_hf')}")
        raise typer.Exit


@application.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def _quiet() -> None:
    """Our messages on stderr, no others' but warnings; others' progress bars on a terminal alone."""
    if isinstance(sys.stdout, io.TextIOWrapper) and not sys.stdout.isatty():
        sys.stdout.reconfigure(encoding="utf-8")  # what reads it is told so, whatever the system's own is
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("umarvel_hf").setLevel(logging.INFO)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.stderr.isatty():
        for name in ("TQDM_DISABLE", "HF_DATASETS_DISABLE_PROGRESS_BARS"):  # Progress, ours, says itself what it does
            os.environ.setdefault(name, "1")


def _complain(message: str, status: int) -> int:
    print(f"{PROGRAM}: {' '.join(message.split())}", file=sys.stderr)
    return status


def _as_json(facts: Any) -> str:
    return json.dumps(facts, ensure_ascii=False, default=str)
