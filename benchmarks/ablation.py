"""What each part of the recipe does: a training with one part changed, against one without the change.

    python benchmarks/ablation.py --out runs/ablation                # all arms, three seeds; stopped, it goes on
    python benchmarks/ablation.py --out runs/ablation --arms "causal attention" --seeds 1
    python benchmarks/ablation.py                                    # table and plot of what ablation.jsonl has

Every run trains the tiny model on the embedded benchmark in a process of its own on one thread, and then measures the
test split on local and union pools. Runs that are compared take as many steps, or where a step of theirs costs more or
less, as many as fit the same CPU seconds. These include the data workers, mining and the making of the start, not the
measuring and not the making of a teacher. Seeds set weights, order, draws and changes to pictures; where an arm goes on
from the model that ships, all but the weights.

`ablation.jsonl` beside this file gets a line a run, with whether every test query found a right answer first or among
five. A line is good for as long as the arm is what it was; after that it is refused, to be removed and run anew. An arm
is compared with its controls over the same queries: of either the mean over the seeds, query by query, in a paired
randomisation test, Holm-corrected for all cells of the table. Queries are one kind of luck, seeds the other: a
difference counts as shown only where there are three seeds and the scores of all of one arm are above those of all of
the other, too. A control that is one model, measured as it is, stands against all seeds.
"""

import argparse
import base64
import hashlib
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

if TYPE_CHECKING:
    from umarvel_hf.data import MBeir
    from umarvel_hf.evaluation.significance import Comparison

HERE = Path(__file__).parent
RESULTS, PAGE, PLOT = HERE / "ablation.jsonl", HERE.parent / "docs/ablation.md", HERE.parent / "docs/ablation.svg"
MODEL_THAT_SHIPS = HERE.parent / "umarvel_hf/emoji/model/model.safetensors"
BEGIN, END = "<!-- written by benchmarks/ablation.py -->\n", "<!-- until here -->\n"  # around the tables on the page
SEEDS = (1, 2, 3)
SETS = {"scenes": "scenes", "emojiseen": "S", "emojiunseen": "U"}
POOLS, METRICS = ("local", "union"), ("hit@1", "hit@5")

AUGMENTATION = {"shift": 0.04, "scale": 0.1, "colour": 0.3, "greyscale": 0.1}
TRAINING = {
    "per_device_train_batch_size": 96,
    "learning_rate": 1.0e-3,
    "adam_beta2": 0.98,
    "lr_scheduler_type": "constant_with_warmup",
    "warmup_steps": 30,
    "weight_decay": 0.05,
    "use_cpu": True,
    "logging_steps": 10,
    "save_steps": 50,
    "save_total_limit": 1,
    "dataloader_num_workers": 1,
    "report_to": "none",
}
DECAYING = {"lr_scheduler_type": "cosine"}  # in the last stage
MUON = {"muon_learning_rate": 4.0e-3}
GOING_ON = {**DECAYING, "learning_rate": 5.0e-4, "muon_learning_rate": 2.0e-3}  # from the model that ships
TEACHER = "re-ranker, fused"  # the arm whose re-ranker, of its first seed, teaches
JUDGE = "4-judge/model"  # in its folder
FUSED = 6  # candidates that it judges: one more than are counted
# Memory that is kept and not given back to the system makes a step a tenth shorter.
KEEP = "hugetlb=1", "mmap_threshold=1073741824", "trim_threshold=8589934592", "top_pad=67108864"
ONE_THREAD = {"OMP_NUM_THREADS": "1", "GLIBC_TUNABLES": ":".join(f"glibc.malloc.{one}" for one in KEEP)}
PART = {"queries_per_task": 50, "candidates_per_task": 1000}  # of the validation split, for the weight of its answers


def trained(name: str, kind: str, steps: int, **changed: Any) -> dict[str, Any]:
    """A stage that trains the embedder, unless told otherwise in batches of two tasks."""
    training = {**TRAINING, "temperature_learning_rate": 2.0e-3, "max_steps": steps, **changed.pop("training", {})}
    stage = {"name": name, "kind": kind, "batches": training["per_device_train_batch_size"] // 2}
    return {**stage, "augmentation": AUGMENTATION, "training": training, **changed}


def infonce(name: str, groups: str | list[str], steps: int, **changed: Any) -> dict[str, Any]:
    """A stage of InfoNCE on training queries of all groups, or of some."""
    return trained(name, "contrastive", steps, data=[{"mbeir": groups}], **changed)


def progressive(**changed: Any) -> list[dict[str, Any]]:
    """Texts, then captions and their pictures, then everything asked for by instructions; ``changed`` in all stages."""
    training = changed.pop("training", {})
    return [
        infonce("texts", ["102 task 1"], 100, **changed, training=training),
        infonce("captions", ["102 task 0"], 90, **changed, training=training),
        infonce("instructions", "all", 100, **changed, training={**DECAYING, **training}),
    ]


def mined(name: str, share: float, **changed: Any) -> dict[str, Any]:
    """A stage that ranks the local pool for a share of the training queries."""
    return {"name": name, "kind": "mine", "pools": ["local"], "depth": 8, "share": share, **changed}


def hard_negatives() -> list[dict[str, Any]]:
    """Mine, and then go on with one negative a row, the first of its list."""
    training = {**GOING_ON, "per_device_train_batch_size": 80}
    learned = {"negatives": {"table": "mined", "local": 1}, "batches": "mixed", "training": training}
    return [mined("mined", 0.3), trained("hard", "hard_negatives", 205, **learned)]


def reranker() -> list[dict[str, Any]]:
    """Train a re-ranker, on texts first: on all tasks at once it never left chance."""
    training = {**TRAINING, "per_device_train_batch_size": 32}
    texts = {"name": "texts", "kind": "reranker", "table": "mined-texts", "training": {**training, "max_steps": 500}}
    judge = {"name": "judge", "kind": "reranker", "table": "mined", "base": "texts"}
    return [
        mined("mined-texts", 0.5, depth=100, groups=["102 task 1", "100 task 1"]),
        texts,
        mined("mined", 0.3, depth=100),
        {**judge, "training": {**training, **DECAYING, "max_steps": 400}},
    ]


def distillation(weight: float) -> list[dict[str, Any]]:
    """Have a teacher judge the first of some lists, and learn the order of its answers and the cosines, weighed."""
    scored = {"name": "taught", "kind": "score", "table": "mined", "reranker": "", "top": 5, "weight": weight}
    training = {**GOING_ON, "learning_rate": 2.0e-4, "muon_learning_rate": 8.0e-4, "per_device_train_batch_size": 16}
    learned = {"table": "taught", "top": 5, "keep_positive": True, "batches": "mixed", "training": training}
    return [mined("mined", 0.03), scored, trained("distilled", "distill", 390, **learned)]


def shipped() -> list[dict[str, Any]]:
    """The stages of ``umarvel train emoji``."""
    stages: list[dict[str, Any]] = yaml.safe_load((HERE.parent / "umarvel_hf/recipes/emoji.yaml").read_text())["stages"]
    return stages


def as_long_in_one_stage() -> list[dict[str, Any]]:
    """Nothing but the instructions of what ships, in the same batches, for as many CPU seconds: blocks, then mixed."""
    stage = next(stage for stage in shipped() if stage["name"] == "instructions")
    begun, rest = ({**stage["training"], "max_steps": steps} for steps in (2520, 570))
    return [
        {**stage, "training": begun},
        {**stage, "name": "mixed", "batches": "mixed", "training": {**rest, **DECAYING}},
    ]


@dataclass(frozen=True)
class Arm:
    """One way to train, or one model.

    Args:
        stages: Of the recipe; none: a model is measured as it is.
        controls: The arms that it is compared with.
        model: Fields of the checkpoint's configuration that are not as usual.
        goes_on: It starts from the model that ships, not from nothing.
        commit: Of the model that shipped at that commit of the project.
        masked: Whether right answers of other rows are left out of a row's negatives.
        teachers: Runs that teach it, by arm and seed: a re-ranker, or several embedders in place of one.
        seeds: That it is run with.
    """

    stages: list[dict[str, Any]]
    controls: tuple[str, ...] = ()
    model: Mapping[str, Any] | None = None
    goes_on: bool = False
    commit: str | None = None
    masked: bool = True
    teachers: tuple[tuple[str, int], ...] = ()
    seeds: tuple[int, ...] = SEEDS


ONE, THREE, FASTER = "one stage", "progressive transition", "AdamW at four times the rate"
SHIPPED, LONG, FIRST = "the recipe that ships", "one stage as long", "the model that shipped first"
AS_IT_IS, MORE = "the model that ships", "the model that ships, for longer"
NO_SPAN = {"instruction_start_token_id": None, "instruction_end_token_id": None}
FIXED = {"temperature": "fixed", "training": {"temperature_learning_rate": None}}
ARMS = {
    ONE: Arm([infonce("instructions", "all", 214, training=DECAYING)]),
    THREE: Arm(progressive(), (ONE,)),
    "causal attention": Arm(progressive(), (THREE,), model={"bidirectional": False}),
    "last token": Arm(progressive(), (THREE,), model={"pooling": "last"}),
    "instruction pooled": Arm(progressive(), (THREE,), model=NO_SPAN),
    "fixed temperature": Arm(progressive(**FIXED), (THREE,)),
    "right answers unmasked": Arm(progressive(), (THREE,), masked=False),
    "rows of tasks mixed": Arm(progressive(batches="mixed"), (THREE,)),
    "one task a batch": Arm(progressive(batches="per_task"), (THREE,)),
    FASTER: Arm(progressive(training={"learning_rate": 4.0e-3}), (THREE,)),
    "linear layers by Muon": Arm(progressive(training=MUON), (THREE, FASTER)),
    FIRST: Arm([], commit="0c4d59591692aac8f9748bc61615a153b677f90a", seeds=SEEDS[:1]),
    LONG: Arm(as_long_in_one_stage()),
    SHIPPED: Arm(shipped(), (LONG, FIRST)),
    AS_IT_IS: Arm([], goes_on=True, seeds=SEEDS[:1]),
    MORE: Arm([infonce("instructions", "all", 350, batches="mixed", training=GOING_ON)], (AS_IT_IS,), goes_on=True),
    "hard negatives": Arm(hard_negatives(), (MORE,), goes_on=True),
    TEACHER: Arm(reranker(), (AS_IT_IS,), goes_on=True, seeds=SEEDS[:1]),
    # The weight that is best for R@1 of the validation split.
    "distillation": Arm(distillation(0.05), (MORE,), goes_on=True, teachers=((TEACHER, SEEDS[0]),)),
    "distillation of an ensemble": Arm(
        distillation(1.0), (MORE,), goes_on=True, teachers=tuple((SHIPPED, seed) for seed in SEEDS)
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder of the runs, 40 MB each")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM", help="default: all")
    parser.add_argument("--seeds", type=int, nargs="+", choices=SEEDS, default=SEEDS, metavar="S", help="default: all")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once (default: %(default)s)")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)  # what a process of its own is told
    arguments = parser.parse_args()
    if arguments.one:
        name, seed = arguments.one
        line = run(name, int(seed), arguments.out)
        with RESULTS.open("a") as file:  # one write, so that lines of several processes stay whole
            file.write(json.dumps(line) + "\n")
        return
    if arguments.out is not None:
        run_all(arguments)
    elif (arguments.arms, arguments.seeds) != (list(ARMS), SEEDS):
        parser.error("--arms and --seeds say what to run; give --out as well")
    show(read_results())


def run_all(arguments: argparse.Namespace) -> None:
    """Run what is not in the results yet, several at once; a result is written as it comes.

    Raises:
        BlockingIOError: Another process runs in the same folder.
        RuntimeError: A run failed; those that had not begun are left.
    """
    from umarvel_hf.store import locked

    known = read_results()
    waiting = [  # by seed, however they are named
        (arm, seed)
        for seed, arm in product(SEEDS, ARMS)
        if seed in arguments.seeds and arm in arguments.arms
        if seed in ARMS[arm].seeds and seed not in known.get(arm, {})
    ]
    waiting.sort(key=lambda work: bool(ARMS[work[0]].teachers))  # those that are taught last, the others as they were
    running: dict[tuple[str, int], Future[None]] = {}
    stopped = threading.Event()

    def one(arm: str, seed: int) -> None:
        for first in ARMS[arm].teachers:
            if first in running:
                running[first].result()
        if stopped.is_set():
            return
        command = [sys.executable, __file__, "--out", arguments.out, "--one", arm, str(seed)]
        log = arguments.out / f"{folder_name(arm, seed)}.log"
        with log.open("a") as said:
            alone = os.environ | ONE_THREAD
            done = subprocess.run(command, env=alone, stdout=said, stderr=said, check=False)
        if done.returncode:
            stopped.set()
            raise RuntimeError(f"{arm}, seed {seed}: see {log}")
        print(f"{arm}, seed {seed}: done", flush=True)

    with locked(arguments.out), ThreadPoolExecutor(arguments.jobs) as pool:
        try:
            for work in waiting:
                running[work] = pool.submit(one, *work)
            for future in as_completed(running.values()):
                future.result()
        finally:
            stopped.set()  # interrupted, too


# One run


def run(name: str, seed: int, out: Path) -> dict[str, Any]:
    """Train an arm, or go on with it, and measure it: a line of the results.

    Raises:
        ValueError: The folder holds a run that followed something else.
    """
    import torch
    from ensemble import Ensemble

    from umarvel_hf.data import MBeir
    from umarvel_hf.emoji import benchmark_dir, model_dir
    from umarvel_hf.encoding import load
    from umarvel_hf.evaluation.benchmark import evaluate_benchmark
    from umarvel_hf.evaluation.reranked import fit_fusion
    from umarvel_hf.evaluation.results import MODEL, RERANKED
    from umarvel_hf.reranking import load_reranker
    from umarvel_hf.trainer import stages
    from umarvel_hf.trainer.run import train
    from umarvel_hf.trainer.views import Slice

    torch.set_num_threads(1)
    arm, folder, benchmark = ARMS[name], out / folder_name(name, seed), MBeir(benchmark_dir())
    follows = stamped(folder, digest(name))
    with counted_seconds(folder / "cpu_seconds"):
        recipe = recipe_of(name, seed, out, benchmark)
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
        if not arm.masked:
            stages.InfoNCE = without_ids(stages.InfoNCE)
        if len(arm.teachers) > 1:
            teachers = [load(teacher, device="cpu") for teacher in teachers_of(arm, out)]
            instructions = {prompt for prompts in benchmark.instructions.values() for prompt in prompts}
            stages.load_reranker = lambda _: Ensemble(teachers, instructions)
        if arm.stages:
            model = train(folder / "recipe.yaml", folder / "run", benchmark=benchmark)
        else:
            model = shipped_at(arm.commit, folder) if arm.commit else model_dir()
    encoder, fused = load(str(model), device="cpu"), {}
    if name == TEACHER:
        reranker = load_reranker(left_by(name, seed, out, JUDGE), device="cpu")
        fusion = fit_fusion(encoder, reranker, Slice(benchmark, **PART), top=FUSED)
        fusion.save(folder / "fusion.json")
        fused = {"reranker": reranker, "fusion": fusion}
    result = evaluate_benchmark(encoder, benchmark, baselines=False, **fused)
    result.save(folder / "result.json")
    system = RERANKED if fused else MODEL
    hits = {
        f"{group} {pool} {metric}": packed([hit for task in tasks for hit in task.scores[system][pool].values[metric]])
        for group, tasks in result.groups.items()
        for pool in POOLS
        for metric in METRICS
    }
    seconds = float((folder / "cpu_seconds").read_text())
    queries = {group: sum(len(task.qids) for task in tasks) for group, tasks in result.groups.items()}
    known = {"arm": name, "seed": seed, "cpu_seconds": round(seconds), "follows": follows}
    return {**known, "queries": queries, "hits": hits}


def stamped(folder: Path, follows: str) -> str:
    """Keep in the folder of a run what it follows, unless it followed something else before."""
    folder.mkdir(parents=True, exist_ok=True)
    stamp = folder / "follows"
    if (before := stamp.read_text() if stamp.is_file() else follows) != follows:
        raise ValueError(f"{folder} followed {before}, but the arm is now {follows}. Remove it.")
    stamp.write_text(follows)
    return follows


def folder_name(arm: str, seed: int) -> str:
    return f"{arm.replace(' ', '-')}-{seed}"


def shipped_at(commit: str, folder: Path) -> Path:
    """The model that the package had at a commit, with the code that it had then, put into a folder."""
    from umarvel_hf.emoji.model import CODE

    model, code = "umarvel_hf/emoji/model", "modeling"
    command = ["git", "-C", str(HERE.parent), "archive", commit, model, code]
    archive = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(folder, filter="data")
    for name in CODE:
        shutil.copyfile(folder / code / name, folder / model / name)
    return folder / model


def left_by(arm: str, seed: int, out: Path, model: str) -> str:
    """A model that another run left in its folder."""
    path = out / folder_name(arm, seed) / "run" / model
    if not path.is_dir():
        raise FileNotFoundError(
            f"{path} does not exist; run the arm {arm!r} with seed {seed} first. If {RESULTS.name} has its line, "
            "remove that: a run that is known is not run again."
        )
    return str(path)


def teachers_of(arm: Arm, out: Path) -> list[str]:
    """The models that teach an arm."""
    return [left_by(name, seed, out, JUDGE if name == TEACHER else "model") for name, seed in arm.teachers]


def recipe_of(name: str, seed: int, out: Path, benchmark: "MBeir") -> dict[str, Any]:
    """The recipe of an arm, in which the teacher is a folder."""
    arm, start = ARMS[name], start_of(name, seed, out, benchmark)
    recipe: dict[str, Any] = {"name": folder_name(name, seed), "seed": seed, "start": start, "stages": arm.stages}
    if arm.teachers:
        teacher = {"reranker": teachers_of(arm, out)[0]}  # of several the first, as the recipe has room for one
        recipe["stages"] = [stage | teacher if stage["kind"] == "score" else stage for stage in arm.stages]
    return recipe


def start_of(name: str, seed: int, out: Path, benchmark: "MBeir") -> dict[str, Any]:
    """What a recipe starts from: nothing, as the tiny ones do, the same with another configuration, or what ships."""
    from umarvel_hf.checkpoint import new_model
    from umarvel_hf.emoji import model_dir
    from umarvel_hf.emoji.base import BaseSize, build_base

    arm, folder = ARMS[name], out / folder_name(name, seed)
    if arm.goes_on:
        return {"model": str(model_dir())}
    if arm.model is None:
        return {"tiny": {}}
    checkpoint = folder / "start"
    if not (checkpoint / "README.md").is_file():  # the file that is written last
        for part in (folder / "base", checkpoint):
            shutil.rmtree(part, ignore_errors=True)
        new_model(build_base(benchmark, folder / "base", BaseSize(), seed), checkpoint)
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | dict(arm.model), indent=2))
    return {"model": str(checkpoint)}


def without_ids(loss: type) -> type:
    """InfoNCE that does not know which candidates are right for several rows."""

    class Unmasked(loss):  # type: ignore[misc]
        def compare(self, embeddings: list[Any], labels: Any = None) -> Any:
            return super().compare(embeddings)

    return Unmasked


@contextmanager
def counted_seconds(path: Path) -> Iterator[None]:
    """Keep in a file the CPU seconds of this process and its children, added to those of runs that were broken off."""
    from umarvel_hf.store import whole_file

    before = float(path.read_text()) if path.is_file() else 0.0
    begun, done = cpu_seconds(), threading.Event()

    def note() -> None:
        with whole_file(path) as file:
            file.write(str(before + cpu_seconds() - begun).encode())

    def keep_noting() -> None:
        while not done.wait(5):
            note()

    noting = threading.Thread(target=keep_noting)
    noting.start()
    try:
        yield
    finally:
        done.set()
        noting.join()
        note()


def cpu_seconds() -> float:
    """Of this process and of those of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


# What was found


def packed(hits: list[float]) -> str:
    """Hits, 0 or 1, as bits in text."""
    return base64.b64encode(np.packbits(np.array(hits, dtype=bool)).tobytes()).decode()


def unpacked(text: str, queries: int) -> np.ndarray:
    """What :func:`packed` was given: (Q,) float64."""
    return np.unpackbits(np.frombuffer(base64.b64decode(text), dtype=np.uint8), count=queries).astype(np.float64)


@cache
def digest(name: str) -> str:
    """Stands for all that the runs of an arm follow: stages, configuration, what it starts from, who teaches it."""
    from umarvel_hf.emoji.base import BaseSize

    arm = ARMS[name]
    facts: dict[str, Any] = {"stages": arm.stages, "model": dict(arm.model or {}), "masked": arm.masked}
    facts["teachers"] = [(teacher, seed, digest(teacher)) for teacher, seed in arm.teachers]
    if name == TEACHER:
        facts["fusion"] = {"top": FUSED, **PART}
    if arm.commit:
        facts["commit"] = arm.commit
    elif arm.goes_on:
        facts["start"] = hashlib.sha256(MODEL_THAT_SHIPS.read_bytes()).hexdigest()
    else:
        facts["start"] = asdict(BaseSize())
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def read_results() -> dict[str, dict[int, dict[str, Any]]]:
    """All runs, by arm and seed.

    Raises:
        ValueError: A line is of no arm, of one that has changed since, or of a run that an earlier line is of.
    """
    found: dict[str, dict[int, dict[str, Any]]] = {arm: {} for arm in ARMS}
    lines = RESULTS.read_text().splitlines() if RESULTS.is_file() else []
    for number, line in enumerate(map(json.loads, lines), start=1):
        name, seed = line["arm"], line["seed"]
        followed, now = line["follows"], digest(name) if name in ARMS else "no arm"
        if followed != now or seed in found[name]:
            what = "is there twice" if followed == now else f"followed {followed}, but the arm is now {now}"
            raise ValueError(f"{RESULTS}, line {number}: {name!r}, seed {seed}, {what}. Remove the line.")
        found[name][seed] = line
    return {arm: dict(sorted(runs.items())) for arm, runs in found.items() if runs}


def hits_of(runs: Mapping[int, Mapping[str, Any]], cell: tuple[str, str, str]) -> np.ndarray:
    """(S, Q): of every seed, whether its queries found a right answer."""
    dataset, pool, metric = cell
    return np.stack(
        [unpacked(run["hits"][f"{dataset} {pool} {metric}"], run["queries"][dataset]) for run in runs.values()]
    )


@dataclass(frozen=True)
class Difference:
    """An arm against one of its controls in one cell of the table.

    Args:
        test: Over queries, whose values are means over seeds; corrected for all cells.
        seeds: How many of them both were run with, or the arm alone if its control is one model.
        apart: Whether these are all, and the scores of all of one are above those of all of the other.
    """

    arm: str
    control: str
    cell: tuple[str, str, str]
    test: "Comparison"
    seeds: int
    apart: bool

    @property
    def verdict(self) -> str:
        """``better`` or ``worse`` where both queries and seeds say so."""
        return self.test.verdict if self.apart else "no difference shown"


def differences(results: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> list[Difference]:
    """All arms in all cells, against a control by the seeds that both were run with."""
    from umarvel_hf.evaluation.significance import corrected, paired

    found = []
    for name, control in ((arm, other) for arm in results for other in ARMS[arm].controls):
        ours, theirs = results[name], results.get(control, {})
        if ARMS[control].stages:
            both = sorted(ours.keys() & theirs.keys())
            ours, theirs = ({seed: one[seed] for seed in both} for one in (ours, theirs))
        if not theirs:
            continue
        for cell in product(SETS, POOLS, METRICS):
            first, second = hits_of(ours, cell), hits_of(theirs, cell)
            test = paired(name, cell[2], name, first.mean(axis=0), control, second.mean(axis=0))
            low, high = sorted((first.mean(axis=1), second.mean(axis=1)), key=np.mean)
            apart = len(ours) == len(SEEDS) and low.max() < high.min()
            found.append(Difference(name, control, cell, test, len(ours), apart))
    tests = corrected([one.test for one in found])
    return [replace(one, test=test) for one, test in zip(found, tests, strict=True)]


def show(results: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> None:
    """Print both tables, and put them and the plot on the page that explains them.

    Raises:
        ValueError: The page does not say where they belong.
    """
    from umarvel_hf.evaluation.comparison import plot
    from umarvel_hf.evaluation.significance import LEVEL

    found = differences(results)
    tables = "\n\n".join([scores_table(results), differences_table(results, found)])
    before, begin, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, end, behind = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{PAGE} lacks one of the lines between which the tables belong: {BEGIN}{END}")
    PAGE.write_text(f"{before}{BEGIN}\n{tables}\n\n{END}{behind}", encoding="utf-8")
    shown = [
        replace(one.test, name=f"{one.arm}, {SETS[one.cell[0]]}", p_holm=one.test.p_holm if one.apart else 1.0)
        for one in found
        if one.cell[1:] == ("local", "hit@1") and one.control == ARMS[one.arm].controls[0]
    ]
    if shown:
        title = "Arms against the first of their controls: R@1, local pools"
        not_shown = f"corrected p ≥ {LEVEL}, or seeds overlap or are too few"
        PLOT.write_text(plot(shown, title=title, not_shown=not_shown), encoding="utf-8")
    print(tables)


def scores_table(results: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> str:
    """R@1 / R@5 in percent, means over seeds, with the CPU seconds of a run."""
    rows = [["arm", "seeds", "CPU s", *(f"{SETS[group]} {pool}" for group, pool in product(SETS, POOLS))]]
    for name, runs in results.items():
        seconds = [run["cpu_seconds"] for run in runs.values()]
        row = [name, str(len(runs)), "–".join(str(one) for one in sorted({min(seconds), max(seconds)}))]
        for group, pool in product(SETS, POOLS):
            row.append(" / ".join(f"{100 * hits_of(runs, (group, pool, metric)).mean():.1f}" for metric in METRICS))
        rows.append(row)
    return markdown(rows)


def differences_table(results: Mapping[str, Mapping[int, Mapping[str, Any]]], found: list[Difference]) -> str:
    """Points, interval, corrected p and verdict of every cell."""
    columns = [f"{pool} R@{metric.partition('@')[2]}" for pool, metric in product(POOLS, METRICS)]
    rows = [["arm", "against", "seeds", "set", *columns]]
    marks = {"better": " ▲", "worse": " ▼", "no difference shown": ""}
    for name, control in dict.fromkeys((one.arm, one.control) for one in found):
        for group in SETS:
            cells = [one for one in found if (one.arm, one.control, one.cell[0]) == (name, control, group)]
            texts = [
                f"{100 * one.test.difference:+.1f} [{100 * one.test.low:.1f}, {100 * one.test.high:.1f}], "
                f"p {one.test.p_holm:.3f}{marks[one.verdict]}"
                for one in cells
            ]
            rows.append([name, control, str(cells[0].seeds), SETS[group], *texts])
    return markdown(rows)


def markdown(rows: list[list[str]]) -> str:
    """A table of Markdown, its first row the heading."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]])


if __name__ == "__main__":
    main()
