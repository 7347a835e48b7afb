"""Losses of the recipe over embeddings of whole batches, cached or not."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import extract_model_from_parallel
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.losses.gradcache import CachedLossMixin
from sentence_transformers.util import all_gather, all_gather_with_grad, get_rank
from sentence_transformers.util.distributed import get_world_size
from torch import Tensor, nn

if TYPE_CHECKING:
    from umarvel_hf.modeling.modeling_umarvel import Similarity

PADDING_ID = -1


class InfoNCE(CachedLossMixin, nn.Module):
    """Contrastive loss with the temperature that the model holds and learns (recipe.md §4.1, §4.2).

    The columns of a batch are queries, positives and, optionally, one column per hard negative. Every query is scored
    against all positives and all hard negatives of all ranks; the loss is the cross-entropy of its own positive. Each
    rank computes the rows of its own queries, and gradients flow to every rank's embeddings, so training on R ranks
    with B rows is training on one with R·B.

    Without ids, a positive that two rows share counts as a negative. With them, as an integer ``label`` column
    (B, 2 + P) of ``qid, did, other positives' dids…`` padded with -1, candidates that are positives of a row's query,
    and rows of the same query, are left out of its negatives.

    Args:
        model: The model to train; its first module wraps a ``UMarvelModel``.
        mini_batch_size: Rows embedded at a time. The whole batch is embedded twice, and memory is that of one
            mini-batch (gradient caching, https://arxiv.org/abs/2101.06983). None: the whole batch at once.

    References:
        recipe.md §4.2. Unlike there, remote rows carry gradients and logits are float32 (§13, 13 and 18).
    """

    def __init__(self, model: SentenceTransformer, mini_batch_size: int | None = None) -> None:
        super().__init__()
        if mini_batch_size is not None and mini_batch_size < 1:
            raise ValueError(
                f"mini_batch_size is {mini_batch_size}; give at least 1, or None for the whole batch at once."
            )
        self.model = model
        self.mini_batch_size = mini_batch_size  # type: ignore[assignment]  # None turns the mixin's caching off
        self.uses_gradient_cache = mini_batch_size is not None

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None) -> Tensor:
        """Mean loss, a 0-d tensor, of features per column; ``labels`` as described above, or None."""
        if self.uses_gradient_cache:
            return self.forward_cached(sentence_features, labels)
        return self.contrast([self.model(features)["sentence_embedding"] for features in sentence_features], labels)

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: Tensor | None = None, *, with_backward: bool = False
    ) -> Tensor:
        """The loss of mini-batches of embeddings per column, as the mixin asks for it."""
        loss = self.contrast([torch.cat(column) for column in reps], labels)
        if with_backward:
            loss.backward()
            return loss.detach()
        return loss

    def contrast(self, embeddings: list[Tensor], ids: Tensor | None = None) -> Tensor:
        """The loss, 0-d float32, of ``embeddings``: queries, positives, hard negatives…, each (B, D) of length 1."""
        if len(embeddings) < 2:
            raise ValueError(
                f"InfoNCE needs a column of queries and one of positives, got {len(embeddings)} column(s)."
            )
        queries, positives, *negatives = embeddings
        pool = torch.cat([from_all_ranks(column) for column in (positives, *negatives)])  # (R·B·(1 + K), D)
        logits = self.similarity(queries, pool)  # (B, R·B·(1 + K))
        own = torch.arange(len(queries), device=logits.device) + get_rank() * len(queries)  # (B,)
        if ids is not None:
            logits = logits.masked_fill(self._false_negatives(ids, own, width=logits.shape[1]), -torch.inf)
        return nn.functional.cross_entropy(logits, own)

    @property
    def similarity(self) -> "Similarity":
        """The model's similarity, which holds the temperature."""
        return similarity_of(self.model)

    def _false_negatives(self, ids: Tensor, own: Tensor, width: int) -> Tensor:
        """Mark, (B, width) bool, candidates that are known to be relevant to a row's query but are not its own."""
        if ids.ndim != 2 or ids.shape[1] < 2 or ids.is_floating_point():
            raise ValueError(
                f"The label column has shape {tuple(ids.shape)} and dtype {ids.dtype}; give integers (B, 2 + P): qid, "
                "did, other positives padded with -1; or leave the column out."
            )
        everyone = from_all_ranks(ids)  # (R·B, 2 + P)
        same_query = ids[:, None, 0] == everyone[None, :, 0]  # (B, R·B)
        relevant = (ids[:, None, 1:] == everyone[None, :, 1:2]).any(dim=-1)
        marked = torch.zeros(len(ids), width, dtype=torch.bool, device=ids.device)
        marked[:, : len(everyone)] = same_query | relevant
        marked[torch.arange(len(ids), device=ids.device), own] = False
        return marked

    def get_config_dict(self) -> dict[str, Any]:
        """What the model card says of this loss."""
        return {"mini_batch_size": self.mini_batch_size, "temperature": "learned, held by the model"}


def from_all_ranks(rows: Tensor) -> Tensor:
    """Rows (B, …) of every rank, (R·B, …), with gradients to every rank where they have any."""
    if get_world_size() == 1:
        return rows
    return all_gather_with_grad(rows) if rows.requires_grad else all_gather(rows)


def similarity_of(model: nn.Module) -> "Similarity":
    """The ``Similarity`` of a ``SentenceTransformer``, wrapped for parallel training or not.

    Raises:
        ValueError: The model holds none: it is no U-MARVEL checkpoint.
    """
    bare: Any = extract_model_from_parallel(model)
    similarity = getattr(getattr(bare[0], "model", None), "similarity", None)
    if similarity is None:
        raise ValueError(
            f"The first module of this model, {type(bare[0]).__name__}, holds no learned temperature. Make a "
            "checkpoint with `umarvel new BASE OUT` (or `umarvel convert`) and load that."
        )
    return similarity
