"""umarvel_hf: universal multimodal retrieval with Hugging Face models.

The public names below load on first use, so that importing the package takes milliseconds.
"""

import typing as _typing
from importlib import import_module as _import_module
from pathlib import Path as _Path

if _typing.TYPE_CHECKING:
    from umarvel_hf.checkpoint import new_model
    from umarvel_hf.conversion import ConversionReport, convert
    from umarvel_hf.data import Candidate, MBeir, Pool, Query, Task
    from umarvel_hf.devices import DeviceEncoder
    from umarvel_hf.encoding import encode, load
    from umarvel_hf.evaluation.audit import Audit, audit
    from umarvel_hf.evaluation.benchmark import evaluate_benchmark, evaluate_run
    from umarvel_hf.evaluation.comparison import compare_results
    from umarvel_hf.evaluation.overview import read_results
    from umarvel_hf.evaluation.reranked import fit_fusion
    from umarvel_hf.evaluation.results import Result
    from umarvel_hf.evaluation.zeroshot import Ranked, rank_suite
    from umarvel_hf.exporting import export
    from umarvel_hf.hub import push
    from umarvel_hf.index import FlatIndex, Hit, build_index, retrieve
    from umarvel_hf.messages import ItemError
    from umarvel_hf.mining import mine_benchmark, show_lists
    from umarvel_hf.negatives import Filters, NegativeTable, Strategy
    from umarvel_hf.report import write_overview, write_report
    from umarvel_hf.reranker_checkpoint import new_reranker
    from umarvel_hf.reranking import Fusion, Reranker, load_reranker
    from umarvel_hf.search import Encoder
    from umarvel_hf.store import VectorStore
    from umarvel_hf.teaching import score_table
    from umarvel_hf.trainer.arguments import UMarvelTrainingArguments
    from umarvel_hf.trainer.batches import BlockBatchSampler
    from umarvel_hf.trainer.callbacks import HardNegativeMining
    from umarvel_hf.trainer.evaluator import RetrievalEvaluator
    from umarvel_hf.trainer.losses import DistillKL, InfoNCE
    from umarvel_hf.trainer.recipe import Recipe
    from umarvel_hf.trainer.reranker import Judgements, train_reranker
    from umarvel_hf.trainer.rows import TrainingRows
    from umarvel_hf.trainer.run import train
    from umarvel_hf.trainer.sources import Choice, MBeirRows, Pairs, TeacherLists
    from umarvel_hf.trainer.trainer import UMarvelTrainer

__all__ = [
    "Audit",
    "BlockBatchSampler",
    "Candidate",
    "Choice",
    "ConversionReport",
    "DeviceEncoder",
    "DistillKL",
    "Encoder",
    "Filters",
    "FlatIndex",
    "Fusion",
    "HardNegativeMining",
    "Hit",
    "InfoNCE",
    "ItemError",
    "Judgements",
    "MBeir",
    "MBeirRows",
    "NegativeTable",
    "Pairs",
    "Pool",
    "Query",
    "Ranked",
    "Recipe",
    "Reranker",
    "Result",
    "RetrievalEvaluator",
    "Strategy",
    "Task",
    "TeacherLists",
    "TrainingRows",
    "UMarvelTrainer",
    "UMarvelTrainingArguments",
    "VectorStore",
    "audit",
    "build_index",
    "compare_results",
    "convert",
    "encode",
    "evaluate_benchmark",
    "evaluate_run",
    "export",
    "fit_fusion",
    "load",
    "load_reranker",
    "mine_benchmark",
    "new_model",
    "new_reranker",
    "push",
    "rank_suite",
    "read_results",
    "retrieve",
    "score_table",
    "show_lists",
    "train",
    "train_reranker",
    "write_overview",
    "write_report",
]

_MODULES = {
    "checkpoint": ("new_model",),
    "conversion": ("ConversionReport", "convert"),
    "data": ("Candidate", "MBeir", "Pool", "Query", "Task"),
    "devices": ("DeviceEncoder",),
    "encoding": ("encode", "load"),
    "evaluation.audit": ("Audit", "audit"),
    "evaluation.benchmark": ("evaluate_benchmark", "evaluate_run"),
    "evaluation.comparison": ("compare_results",),
    "evaluation.overview": ("read_results",),
    "evaluation.reranked": ("fit_fusion",),
    "evaluation.results": ("Result",),
    "evaluation.zeroshot": ("Ranked", "rank_suite"),
    "exporting": ("export",),
    "hub": ("push",),
    "index": ("FlatIndex", "Hit", "build_index", "retrieve"),
    "messages": ("ItemError",),
    "mining": ("mine_benchmark", "show_lists"),
    "negatives": ("Filters", "NegativeTable", "Strategy"),
    "report": ("write_overview", "write_report"),
    "reranker_checkpoint": ("new_reranker",),
    "reranking": ("Fusion", "Reranker", "load_reranker"),
    "search": ("Encoder",),
    "store": ("VectorStore",),
    "teaching": ("score_table",),
    "trainer.arguments": ("UMarvelTrainingArguments",),
    "trainer.batches": ("BlockBatchSampler",),
    "trainer.callbacks": ("HardNegativeMining",),
    "trainer.evaluator": ("RetrievalEvaluator",),
    "trainer.losses": ("DistillKL", "InfoNCE"),
    "trainer.recipe": ("Recipe",),
    "trainer.reranker": ("Judgements", "train_reranker"),
    "trainer.rows": ("TrainingRows",),
    "trainer.run": ("train",),
    "trainer.sources": ("Choice", "MBeirRows", "Pairs", "TeacherLists"),
    "trainer.trainer": ("UMarvelTrainer",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

# An uninstalled checkout keeps modeling/ and trainer/ beside this folder; setup.cfg maps them when installed.
_root = _Path(__file__).resolve().parent.parent
if (_root / "setup.cfg").is_file() and (_root / "modeling").is_dir():
    __path__.append(str(_root))


def __getattr__(name: str) -> _typing.Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"umarvel_hf has no {name!r}; it has {', '.join(__all__)}.")
    return getattr(_import_module(f"umarvel_hf.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
