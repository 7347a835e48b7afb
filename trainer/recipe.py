"""A recipe: everything that a training needs, as a list of stages."""

from dataclasses import dataclass, field
from typing import Any, Literal

from umarvel_hf.emoji.base import BaseSize
from umarvel_hf.negatives import Filters
from umarvel_hf.trainer.adapters import Lora

Pool = Literal["local", "union"]


@dataclass(frozen=True)
class Start:
    """What the first stage starts from: exactly one of ``tiny``, ``smollm2`` and ``model``.

    Args:
        tiny: A base of this size, built from nothing, its vocabulary learned from the benchmark's training texts.
        smollm2: A Qwen2-VL whose language model is SmolLM2-135M (:mod:`umarvel_hf.smollm2`); its options.
        model: Folder or Hub id of a U-MARVEL checkpoint, which is taken as it is, or of any vision-language model.
        positions, deepstack: For a new checkpoint: as published ones have them ("sequential", off), or as the backbone
            does (recipe.md §1.4, §1.5).
    """

    tiny: BaseSize | None = None
    smollm2: dict[str, int] | None = None
    model: str | None = None
    positions: Literal["native", "sequential"] = "native"
    deepstack: bool = True

    def __post_init__(self) -> None:
        given = [name for name in ("tiny", "smollm2", "model") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of tiny, smollm2 and model; found {given}.")


@dataclass(frozen=True)
class Evaluation:
    """What is measured: a part of the validation split after every stage, and the test split at the end."""

    queries_per_task: int = 50
    candidates_per_task: int = 1000
    test: bool = False

    def __post_init__(self) -> None:
        if min(self.queries_per_task, self.candidates_per_task) < 1:
            raise ValueError(
                f"queries_per_task is {self.queries_per_task}, candidates_per_task {self.candidates_per_task}; give at "
                "least 1."
            )


@dataclass(frozen=True)
class Nli:
    """Sentences of a CSV file with the columns ``sent0, sent1, hard_neg``; ``snli``: ``umarvel_hf.fetch`` gets it."""

    nli: str
    negatives: bool = False
    weight: float = 1.0


@dataclass(frozen=True)
class Captions:
    """Pictures and texts that describe them: jsonl, Parquet, a saved ``datasets`` folder, or a data set on the Hub."""

    captions: str
    text: str = "text"
    image: str = "image"
    images: str | None = None
    direction: Literal["text-to-image", "image-to-text"] = "text-to-image"
    instruction: str | None = None
    weight: float = 1.0


@dataclass(frozen=True)
class Instructions:
    """The benchmark's training queries with their instructions: of all tasks, or of the groups named."""

    mbeir: Literal["all"] | list[str]
    weight: float = 1.0


Data = Nli | Captions | Instructions


@dataclass(frozen=True)
class Negatives:
    """Which mined negatives a row gets (recipe.md §6.5).

    Args:
        table: The stage that mined them, ``mine`` or ``score``.
        local, union: How many from the lists of either pool.
        strategy, window, wrong_modality: See :class:`umarvel_hf.negatives.Strategy`.
        filters: See :class:`umarvel_hf.negatives.Filters`.
        shared: Whether every query of the global batch sees them, or only their own row (§4.3).
        tasks: Another ``strategy`` and ``window`` for the groups named.
    """

    table: str
    local: int = 0
    union: int = 0
    strategy: Literal["top", "window", "random"] = "top"
    window: tuple[int, int] | None = None
    wrong_modality: int = 0
    filters: Filters = field(default_factory=Filters)
    shared: bool = True
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One step of a recipe; ``name`` is that of its folder and how others refer to it."""

    name: str


@dataclass(frozen=True, kw_only=True)
class Training(Stage):
    """A stage that changes weights.

    Args:
        training: Fields of ``UMarvelTrainingArguments``.
        lora: Train an adapter, merged when the stage is done; None: all weights.
        attn_implementation: Attention kernel of this stage.
    """

    training: dict[str, Any]
    lora: Lora | None = None
    attn_implementation: str = "sdpa"


@dataclass(frozen=True, kw_only=True)
class Embedding(Training):
    """A stage that trains the embedder.

    Args:
        batches: ``mixed`` row by row, ``per_task``, or how many rows of one task stand together.
        first: Groups that open the first epoch, one after the other.
        temperature: Whether it is learned.
        augmentation: Arguments of ``Augmentation``.
    """

    batches: int | Literal["mixed", "per_task"] = "mixed"
    first: list[str] = field(default_factory=list)
    temperature: Literal["learned", "fixed"] = "learned"
    augmentation: dict[str, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Contrastive(Embedding):
    """InfoNCE on pairs or triplets of several data sets (recipe.md §4.2, §5).

    Args:
        data: One or more; each has a weight, how often its rows come in an epoch.
        symmetric: Candidates look for their queries, too (§4.4).
        optional: Leave the stage out where its data have to be fetched and cannot be.
    """

    data: list[Data]
    symmetric: bool = False
    optional: bool = False

    @property
    def only_pairs(self) -> bool:
        """Whether it learns from files of pairs alone, and from no benchmark."""
        return not any(isinstance(one, Instructions) for one in self.data)


@dataclass(frozen=True, kw_only=True)
class Mine(Stage):
    """Rank the training pools for training queries with the model so far (recipe.md §6.1–6.3).

    Args:
        groups: Queries of these only; None: all.
        pools, depth, share: See :func:`umarvel_hf.mining.mine_benchmark`.
    """

    groups: list[str] | None = None
    pools: list[Pool] = field(default_factory=lambda: ["local", "union"])
    depth: int = 100
    share: float = 1.0
    batch_tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class HardNegatives(Embedding):
    """InfoNCE on training queries with mined negatives (recipe.md §6.5), mined anew every so often if told to."""

    negatives: Negatives
    remine_every_epochs: int | None = None
    remine_every_steps: int | None = None


@dataclass(frozen=True, kw_only=True)
class Reranker(Training):
    """Train a point-wise re-ranker on mined lists (recipe.md §7.1).

    Args:
        table: The ``mine`` stage whose local lists hold the negatives.
        base: What it starts from: a folder, a Hub id or an earlier stage; None: what the recipe starts from.
        max_text_tokens: Longer texts are cut, in training only.
    """

    table: str
    base: str | None = None
    max_text_tokens: int = 256


@dataclass(frozen=True, kw_only=True)
class Score(Stage):
    """Teacher scores for mined lists, of their cosines and a re-ranker's answers; see :func:`score_table`.

    Args:
        top: Candidates of a list that are judged.
        reranker: An earlier stage, a folder or a Hub id.
        fit_top: Candidates of a validation query that are judged to fit the weight.
        weight: None: fitted on the part of the validation split that ``evaluation`` names.
    """

    table: str
    reranker: str
    top: int = 50
    fit_top: int = 20
    weight: float | None = None


@dataclass(frozen=True, kw_only=True)
class Distill(Embedding):
    """Learn the teacher's distribution over each query's own candidates (recipe.md §7.6)."""

    table: str
    top: int = 50
    keep_positive: bool = False
    infonce_weight: float = 0.0


KINDS: dict[str, type[Stage]] = {
    "contrastive": Contrastive,
    "mine": Mine,
    "hard_negatives": HardNegatives,
    "reranker": Reranker,
    "score": Score,
    "distill": Distill,
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a recipe file says; its keys are these fields.

    Args:
        name: Names the run.
        seed: Seed of weights, rows, order and changes to pictures.
        start: What the first stage starts from.
        stages: In the order in which they run.
        benchmark: Folder in M-BEIR's layout, unless another is given with the run; None: the embedded one.
        max_pixels: Larger pictures are scaled down to so many, from the start on.
        bad_rows: Whether a row that cannot be used ends the run, or is left out and listed in ``quarantine.jsonl``.
        evaluation: What is measured; None: nothing.

    Raises:
        ValueError: ``seed`` is not from 0 to below 2**32.
    """

    name: str
    seed: int
    start: Start
    stages: list[Stage]
    benchmark: str | None = None
    max_pixels: int | None = None
    bad_rows: Literal["stop", "quarantine"] = "stop"
    evaluation: Evaluation | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed is {self.seed}; give a whole number from 0 to below 2**32.")

    @property
    def needs_benchmark(self) -> bool:
        """Whether a benchmark is learned from or measured on."""
        return self.learns_from_benchmark or self.evaluation is not None or self.start.tiny is not None

    @property
    def learns_from_benchmark(self) -> bool:
        """Whether a stage reads a benchmark's training queries."""
        read = any(isinstance(stage, Mine | HardNegatives | Reranker | Distill) for stage in self.stages)
        return read or any(isinstance(stage, Contrastive) and not stage.only_pairs for stage in self.stages)

    @property
    def measures_test(self) -> bool:
        """Whether the test split is measured at the end."""
        return self.evaluation is not None and self.evaluation.test

    def stage(self, name: str) -> Stage:
        """The stage of that name."""
        return next(stage for stage in self.stages if stage.name == name)
