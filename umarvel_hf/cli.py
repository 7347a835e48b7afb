"""The command ``umarvel``: one verb, one function; an option is a parameter of that function."""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# Nothing heavy is imported here: `umarvel --help` answers at once.


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb. Returns 0, or 2 where the input was wrong; then one line on stderr says what to do."""
    options = vars(_parser().parse_args(arguments))
    verb: Callable[..., None] = options.pop("verb")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("umarvel_hf").setLevel(logging.INFO)
    try:
        verb(**options)
    except KeyboardInterrupt:
        print("umarvel: stopped", file=sys.stderr)
        return 130
    except Exception as error:
        from safetensors import SafetensorError

        if not isinstance(error, ValueError | TypeError | OSError | ImportError | SafetensorError):
            raise
        damaged = "a weights file is damaged; copy it again: " if isinstance(error, SafetensorError) else ""
        print(f"umarvel: {damaged}{' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def demo(*, out: Path, train: bool) -> None:
    """Evaluate the shipped model on the embedded benchmark, search a little, write report.html."""
    from umarvel_hf.demo import run_demo

    run_demo(out, train=train)


def data(*, out: Path) -> None:
    """Write the embedded benchmark in M-BEIR's layout to a folder."""
    from umarvel_hf.emoji import write_benchmark

    print(write_benchmark(out))


def new(*, base: str, out: Path) -> None:
    """Make a U-MARVEL checkpoint of any vision-language model."""
    from umarvel_hf.checkpoint import new_model

    print(new_model(base, out))


def convert(*, src: str, out: Path, base: str | None, generation_prompt: str, instruction_rows: str | None) -> None:
    """Turn a checkpoint of the reference implementation into a U-MARVEL checkpoint."""
    from umarvel_hf.checkpoint import convert

    report = convert(
        src,
        out,
        base=base,
        generation_prompt=generation_prompt == "on",
        instruction_rows=instruction_rows,  # type: ignore[arg-type]
    )
    print(report)
    print(out)


def train(*, recipe: str, out: Path | None, data: Path | None, max_steps: int | None) -> None:
    """Train a model as a recipe says; the same command again goes on where it stopped."""
    from umarvel_hf.data import MBeir
    from umarvel_hf.emoji import benchmark_dir
    from umarvel_hf.trainer.recipe import read_recipe, train

    read_recipe(recipe)  # a misspelt one is refused before the benchmark is written
    benchmark = MBeir(data or benchmark_dir())
    # A trial has a folder of its own: it is finished, and would stand in the way of the real run.
    name = Path(recipe).stem if max_steps is None else f"{Path(recipe).stem}-{max_steps}-steps"
    print(train(recipe, out or Path("runs") / name, benchmark=benchmark, max_steps=max_steps))


def search(
    *, query: str | None, image: Path | None, text: str | None, images: Path | None, model: str | None,
    instruction: str | None, k: int,
) -> None:  # fmt: skip
    """Search pictures by a text, a picture, or both."""
    from umarvel_hf.demo import search_pictures

    if query is not None and text is not None:
        raise ValueError(f"two texts are given, {query!r} and --text {text!r}; give one.")
    for line in search_pictures(
        text=query or text, image=image, images=images, model=model, instruction=instruction, k=k
    ):
        print(line)


def _parser() -> argparse.ArgumentParser:
    from importlib.metadata import PackageNotFoundError, version

    try:
        number = version("umarvel_hf")
    except PackageNotFoundError:
        number = "not installed"
    parser = argparse.ArgumentParser(
        prog="umarvel", description="Universal multimodal retrieval: one embedder for text, pictures and both."
    )
    parser.add_argument("--version", action="version", version=f"umarvel_hf {number}")
    verbs = parser.add_subparsers(metavar="VERB", required=True)

    verb = _verb(verbs, demo, "umarvel demo")
    verb.add_argument(
        "--out", type=Path, default=Path("umarvel-demo"), help="folder of the results (default: %(default)s)"
    )
    verb.add_argument("--train", action="store_true", help="train the model again from nothing first (about an hour)")

    verb = _verb(verbs, data, "umarvel data emoji-benchmark")
    verb.add_argument("out", type=Path, help="folder to write; must not exist yet")

    verb = _verb(verbs, new, "umarvel new Qwen/Qwen2-VL-2B-Instruct my-embedder")
    verb.add_argument("base", help="folder or Hub id of a vision-language model")
    verb.add_argument("out", type=Path, help="folder to write")

    verb = _verb(verbs, convert, "umarvel convert TencentBAC/U-MARVEL-Qwen2VL-7B-Instruct u-marvel-7b")
    verb.add_argument("src", help="folder or Hub id of a merged checkpoint or a LoRA adapter")
    verb.add_argument("out", type=Path, help="folder to write")
    verb.add_argument("--base", help="what an adapter was trained on (default: what its configuration names)")
    verb.add_argument(
        "--generation-prompt", choices=("on", "off"), default="on", help="close the text with one more assistant turn"
    )
    verb.add_argument(
        "--instruction-rows",
        choices=("mean", "stored"),
        help="embedding rows of the instruction tokens (default: detected)",
    )

    verb = _verb(verbs, train, "umarvel train emoji")
    verb.add_argument("recipe", help="name of a shipped recipe, or path of a YAML file")
    verb.add_argument("--out", type=Path, help="folder of the run (default: runs/RECIPE, or runs/RECIPE-N-steps)")
    verb.add_argument("--data", type=Path, help="folder in M-BEIR's layout (default: the embedded benchmark)")
    verb.add_argument("--max-steps", type=int, help="fewer steps than the recipe says, for a trial")

    verb = _verb(verbs, search, 'umarvel search "a red heart"')
    verb.add_argument("query", nargs="?", help="a text")
    verb.add_argument("--image", type=Path, help="a picture")
    verb.add_argument("--text", help="a text that goes with the picture")
    verb.add_argument("--images", type=Path, help="folder of pictures to search (default: the embedded ones)")
    verb.add_argument("--model", help="folder or Hub id of a checkpoint (default: the shipped one)")
    verb.add_argument("--instruction", help="what to look for (default: one that fits the query)")
    verb.add_argument("-k", type=int, default=5, help="how many to show (default: %(default)s)")
    return parser


def _verb(verbs: Any, function: Callable[..., None], example: str) -> argparse.ArgumentParser:
    told = (function.__doc__ or "").strip()
    parser: argparse.ArgumentParser = verbs.add_parser(
        function.__name__, help=told, description=told, epilog=f"example: {example}"
    )
    parser.set_defaults(verb=function)
    return parser


if __name__ == "__main__":
    sys.exit(main())
