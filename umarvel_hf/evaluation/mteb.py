"""An embedder as a model of mteb, for its tasks of text, of pictures and of both (``pip install umarvel_hf[mteb]``)."""

import hashlib
import json
from collections.abc import Callable, Collection, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

import numpy as np

from umarvel_hf._torchvision import ensure_torchvision

ensure_torchvision()
try:
    from mteb.models import ModelMeta
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.models.model_meta import ScoringFunction
    from mteb.types import Licenses, PromptType
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("mteb is not installed. Install: pip install 'umarvel_hf[mteb]'.") from error

from umarvel_hf.cards import told_by_card
from umarvel_hf.encoding import encode, load
from umarvel_hf.evaluation.results import MTEB_NAMES
from umarvel_hf.fingerprint import fingerprint
from umarvel_hf.hub import local_folder, split_revision
from umarvel_hf.records import format_query, format_string

if TYPE_CHECKING:
    from mteb.abstasks.task_metadata import TaskMetadata
    from torch.utils.data import DataLoader

BLOCK = 1_024  # items whose pictures are in memory at once
COLUMNS = ("image", "text")
M_BEIR = "https://huggingface.co/datasets/TIGER-Lab/M-BEIR"


class MtebEncoder(AbsEncoder):
    """What ``mteb.evaluate`` takes as a model.

    Queries, and items of tasks that know no queries, get the task's prompt as their instruction; documents get none. In
    mteb's 16 tasks from M-BEIR, texts and prompts are normalised as M-BEIR's are, so both ways to a score encode the
    same.

    Args:
        model_name: Folder or Hub id of a checkpoint.
        revision: Of a repository: branch, tag or commit.
        device: Such as ``cuda``; None: the best there is.
        name: What results call the model, ``organisation/name``; None: the Hub id, or ``local/<folder>``.
        training_datasets: Names of mteb's tasks whose data trained it, which mteb then does not count as unseen. The
            sets of M-BEIR unless told otherwise.
        batch_tokens: As in :func:`umarvel_hf.encoding.encode`.
        kwargs: As in :func:`umarvel_hf.encoding.load`, such as ``dtype``.

    Raises:
        ValueError, FileNotFoundError, PermissionError, ConnectionError: As in :func:`umarvel_hf.encoding.load`.
    """

    def __init__(
        self,
        model_name: str | Path,
        revision: str | None = None,
        *,
        device: str | None = None,
        name: str | None = None,
        training_datasets: Collection[str] = tuple(MTEB_NAMES),
        batch_tokens: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.model = load(model_name, revision=revision, device=device, **kwargs)
        self.mteb_model_meta = self._meta(model_name, revision, name, set(training_datasets))
        self._batch_tokens = batch_tokens

    def encode(
        self,
        inputs: "DataLoader[Any]",
        *,
        task_metadata: "TaskMetadata",
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool = False,
        **kwargs: Any,
    ) -> np.ndarray:
        """Embed what a loader of mteb gives: (N, D) float32 unit vectors.

        Args:
            inputs: Batches with the columns ``text``, ``image`` or both.
            batch_size: Of the loader; batches of the model are cut by tokens.

        Raises:
            ValueError: A row has neither text nor picture, or an option is asked for that vectors are not made with.
        """
        if kwargs:
            raise ValueError(f"{', '.join(kwargs)} cannot be given: vectors are float32 of the checkpoint's dimension.")
        asked = prompt_type is not PromptType.document
        instruction = self.get_task_instruction(task_metadata, prompt_type) if asked else None
        normalise = None
        if task_metadata.name in MTEB_NAMES:
            instruction, normalise = format_string(instruction), format_query if asked else format_string
        rows = _rows(inputs, normalise)
        blocks = []
        while block := list(islice(rows, BLOCK)):
            blocks.append(
                encode(
                    self.model, block, prompt=instruction or None, batch_tokens=self._batch_tokens,
                    show_progress_bar=show_progress_bar,
                )
            )  # fmt: skip
        return (
            np.concatenate(blocks) if blocks else np.empty((0, self.model.get_embedding_dimension() or 0), np.float32)
        )

    def _meta(self, source: str | Path, revision: str | None, name: str | None, trained_on: set[str]) -> ModelMeta:
        """All that mteb asks of a model and that the checkpoint tells."""
        folder = local_folder(source, revision=revision, code=True)
        of_hub = folder != Path(source)
        config, weights = self.model[0].model.config, list(self.model.parameters())
        license = told_by_card(folder, "license")
        return ModelMeta(
            loader=cast(Any, type(self)),
            name=name or (split_revision(source)[0] if of_hub else f"local/{folder.resolve().name}"),
            revision=folder.name if of_hub else self._digest(),  # results are kept by it
            release_date=None,
            languages=["eng-Latn"],
            n_parameters=sum(one.numel() for one in weights),
            n_embedding_parameters=self.model[0].model.get_input_embeddings().weight.numel(),
            memory_usage_mb=sum(one.numel() * one.element_size() for one in weights) / 2**20,
            max_tokens=getattr(config.get_text_config(), "max_position_embeddings", None),
            embed_dim=self.model.get_embedding_dimension(),
            license=license if license in get_args(Licenses) else None,
            open_weights=True,
            public_training_code=None,
            public_training_data=M_BEIR if trained_on >= MTEB_NAMES.keys() else None,
            framework=["Sentence Transformers", "PyTorch", "Transformers", "safetensors"],
            reference=f"https://huggingface.co/{split_revision(source)[0]}" if of_hub else None,
            similarity_fn_name=ScoringFunction.COSINE,
            use_instructions=True,
            training_datasets=trained_on,
            adapted_from=told_by_card(folder, "base_model"),
            modalities=["text", "image"],
        )

    def _digest(self) -> str:
        """A checksum of what shapes the vectors, the weights among it, as long as a commit's."""
        made_by = json.dumps(fingerprint(self.model), sort_keys=True)
        return hashlib.sha256(made_by.encode()).hexdigest()[:40]


def _rows(inputs: "DataLoader[Any]", normalise: Callable[[str], str] | None) -> Iterator[dict[str, Any]]:
    """The items of a loader, one by one; an empty text is none."""
    number = 0
    for batch in inputs:
        columns = [name for name in COLUMNS if name in batch]
        for values in zip(*(batch[name] for name in columns), strict=True):
            item = {name: value for name, value in zip(columns, values, strict=True) if value is not None}
            text = item.pop("text", "")
            if text.strip():
                item["text"] = text if normalise is None else normalise(text)
            if not item:
                raise ValueError(f"row {number:,} has neither text nor picture; its columns are {list(batch)}.")
            number += 1
            yield item
