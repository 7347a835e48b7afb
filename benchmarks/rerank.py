"""How fast the candidates of a query are judged, beside what the hosts offer and what the reference does.

    python benchmarks/rerank.py
    python benchmarks/rerank.py --candidates 6 --generated 1 --repetitions 1

The model is a Qwen2-VL of 41 million random weights in single precision. A query is a picture of 448 × 448 pixels, 256
visual tokens, with a text; it has 50 candidates, first texts of at most 40 tokens, then pictures. Four ways to answer
the same pairs with the same weights, in turn, the differences of their answers in the same run:

- ours: ``load_reranker(...).predict``;
- ``CrossEncoder.predict`` as it comes, in batches of 32;
- one forward per pair: the same with a batch of 1;
- the reference's way (recipe.md §7.3): per pair ``generate`` of up to 128 tokens, of which the first one's scores are
  read. Random weights do not know how to stop, so all 128 are written where no end token comes by chance. Only
  ``--generated`` pairs of every query are run; the seconds are scaled to all of them, and the table says so.

Useful work is what the pairs need if all that is shared is computed once, without padding. Its share is that of this
machine's rate of matrix products, measured in the same rounds.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from umarvel_hf._torchvision import ensure_torchvision

ensure_torchvision()
import numpy as np
from measure import Products, interleaved, machine, ratio, table
from memory import alone, peak_rss
from operations import Operations
from transformers import AutoModelForImageTextToText, AutoProcessor
from workload import Draw, write_base

from umarvel_hf import load_reranker, new_reranker
from umarvel_hf.prefix import shared_length, token_ids, with_pictures

OURS, STOCK, SINGLE, REFERENCE = "ours", "CrossEncoder, 32 at once", "one forward per pair", "reference: generate"
CANDIDATE_TOKENS, GENERATED_TOKENS = 40, 128
QUERY_SIZE = (448, 448)
KINDS = ("texts", "pictures")  # of candidates

Pairs = list[tuple[dict[str, Any], dict[str, Any]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--candidates", type=int, default=50, help="of each query (default: %(default)s)")
    parser.add_argument("--generated", type=int, default=4, help="pairs a query to generate for (default: %(default)s)")
    parser.add_argument("--repetitions", type=int, default=5, help="rounds that are counted (default: %(default)s)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="of candidates (default: both)")
    arguments = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory(prefix="rerank-") as scratch:
        folder = new_reranker(write_base(Path(scratch) / "base"), Path(scratch) / "reranker")
        for kind in arguments.kinds:
            measure(folder, kind, arguments)


def measure(folder: Path, kind: str, arguments: argparse.Namespace) -> None:
    # 1. The subjects, each with what it answers.
    queries = draw(folder, kind, arguments.queries, arguments.candidates)
    count, generated = arguments.queries * arguments.candidates, min(arguments.generated, arguments.candidates)
    subjects = {name: make(folder, queries, generated) for name, make in SUBJECTS.items()}

    # 2. Time, in turn; what was run in part is scaled.
    seconds, answers = interleaved({**subjects, "products": (products := Products())}, arguments.repetitions)
    seconds[REFERENCE] = [one * arguments.candidates / generated for one in seconds[REFERENCE]]
    work, rate = useful_work(folder, queries), products.rate(seconds.pop("products"))

    # 3. Memory, of each in a process of its own.
    peaks = {name: alone(peak, name, folder, kind, arguments.queries, arguments.candidates) for name in subjects}

    rows = []
    for name, rounds in seconds.items():
        theirs = answers[name]
        ours = answers[OURS][:, : theirs.shape[1]]
        median = statistics.median(rounds)
        rows.append(
            (
                name,
                f"{median:.2f}",
                "1" if name == OURS else ratio(rounds, seconds[OURS]),
                f"{count / median:.1f}",
                f"{peaks[name] / 1e9:.2f} GB",
                f"{work / median / rate:.0%}",
                f"{np.abs(theirs - ours).max():.1e}",
            )
        )
    print(
        f"\n{arguments.queries} × {arguments.candidates} candidates, {kind}; {arguments.repetitions} rounds; ", end=""
    )
    print(f"useful {work / 1e9:.0f} GFLOP, matrix rate {rate / 1e9:.0f} GFLOP/s; ", end="")
    print(f"generation run for {generated} of {arguments.candidates} candidates and scaled\n")
    header = ("subject", "seconds", "times ours", "pairs/s", "peak RSS", "useful share of rate", "max. difference")
    print(table(header, rows))


def draw(folder: Path, kind: str, queries: int, candidates: int) -> list[Pairs]:
    """Of every query its pairs, by a seed."""
    source, tokenizer = Draw(), AutoProcessor.from_pretrained(folder).tokenizer
    drawn = []
    for _ in range(queries):
        query = {"image": source.picture(QUERY_SIZE), "text": source.text()}
        makers = {"texts": short_texts(source, tokenizer), "pictures": iter(lambda: {"image": source.picture()}, None)}
        drawn.append([(query, next(makers[kind])) for _ in range(candidates)])
    return drawn


def short_texts(source: Draw, tokenizer: Any) -> Iterator[dict[str, Any]]:
    while True:
        text = source.text((1, 5))
        if len(tokenizer(text).input_ids) <= CANDIDATE_TOKENS:
            yield {"text": text}


def ours(folder: Path, queries: list[Pairs], generated: int) -> Callable[[], np.ndarray]:
    judge = load_reranker(folder)
    return lambda: judge.predict([pair for pairs in queries for pair in pairs]).reshape(len(queries), -1)


def stock(folder: Path, queries: list[Pairs], generated: int, batch_size: int) -> Callable[[], np.ndarray]:
    model, flat = load_reranker(folder).model, [pair for pairs in queries for pair in pairs]
    return lambda: model.predict(flat, batch_size=batch_size, show_progress_bar=False).reshape(len(queries), -1)


def reference(folder: Path, queries: list[Pairs], generated: int) -> Callable[[], np.ndarray]:
    """``generate`` per pair, P(Yes) of the scores of its first step (recipe.md §7.3)."""
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    yes_no = [processor.tokenizer(word).input_ids[0] for word in ("Yes", "No")]

    def answer(query: dict[str, Any], candidate: dict[str, Any]) -> float:
        chat = [
            {"role": role, "content": [{"type": kind, kind: value} for kind, value in item.items()]}
            for role, item in (("query", query), ("document", candidate))
        ]
        inputs = processor.apply_chat_template(chat, tokenize=True, return_dict=True, return_tensors="pt")
        written = model.generate(
            **inputs,
            max_new_tokens=GENERATED_TOKENS,
            do_sample=False,
            output_scores=True,
            return_dict_in_generate=True,
        )
        return written.scores[0][0, yes_no].softmax(dim=0)[0].item()

    return lambda: np.array([[answer(*pair) for pair in pairs[:generated]] for pairs in queries])


SUBJECTS: dict[str, Callable[[Path, list[Pairs], int], Callable[[], np.ndarray]]] = {
    OURS: ours,
    STOCK: partial(stock, batch_size=32),
    SINGLE: partial(stock, batch_size=1),
    REFERENCE: reference,
}


def peak(name: str, folder: Path, kind: str, queries: int, candidates: int) -> int:
    """Peak memory of one run; of the reference's way one pair, as it holds no more than one."""
    SUBJECTS[name](folder, draw(folder, kind, queries, candidates), 1)()
    return peak_rss()


def useful_work(folder: Path, queries: list[Pairs]) -> float:
    """Operations that the pairs need if all that is shared is computed once."""
    return sum(query_work(load_reranker(folder).model, pairs) for pairs in queries)


def query_work(model: Any, pairs: Pairs) -> float:
    processor = model[0].processor
    rows = token_ids(processor, model[0].input_formatter.parse_inputs(pairs)[1]["message"])
    shared = shared_length(rows, processor.image_token_id, 1)
    pictures = [[item["image"]] if "image" in item else [] for item in (pairs[0][0], *(own for _, own in pairs))]
    prefix, *rests = with_pictures(processor, [rows[0][:shared], *(row[shared:] for row in rows)], pictures)
    patches = [count for one in (prefix, *rests) for count in one.grids.prod(dim=1).tolist()]
    looked = (len(prefix) + 1) / 2 * len(prefix)  # pairs of tokens of which one looks at the other
    looked += sum(len(rest) * (len(prefix) + (len(rest) + 1) / 2) for rest in rests)
    needed = Operations(model.transformers_model.base_model)
    return needed.of_tokens(len(prefix) + sum(map(len, rests)), looked) + needed.of_patches(patches)


if __name__ == "__main__":
    main()
