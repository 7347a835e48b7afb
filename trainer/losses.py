"""Losses of the recipe over embeddings of whole batches, cached or not."""

import time
from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import extract_model_from_parallel
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.losses.gradcache import CachedLossMixin, RandContext
from sentence_transformers.util import all_gather, all_gather_with_grad, get_rank
from sentence_transformers.util.distributed import get_world_size
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div

from umarvel_hf.trainer.pictures import SeenPictures

if TYPE_CHECKING:
    from umarvel_hf.modeling.modeling_umarvel import Similarity

PADDING_ID = -1
ROW_ORDER = "row_order"  # of a column's features


class NotFinite(FloatingPointError):
    """A batch's loss is infinite or no number; ``labels`` (B, …) or None are the batch's, to name its rows by."""

    def __init__(self, loss: Tensor, labels: Tensor | None) -> None:
        super().__init__(
            f"The loss of a batch is {loss.item()}; no weight was changed by it. Lower the learning rate, train in "
            "bfloat16 instead of float16, or look at this batch's rows."
        )
        self.labels = labels


class EmbeddingLoss(CachedLossMixin, nn.Module):
    """A loss of the embeddings of a batch's columns.

    What it is trained on it adds up in ``counts``, for the trainer to read and clear: ``tokens``, ``slots`` (with
    padding), ``negatives``, ``masked`` of these, and ``started``, the time of the first batch.

    Args:
        model: The model to train; its first module wraps a ``UMarvelModel``.
        mini_batch_size: Rows embedded at a time. The whole batch is embedded twice, and memory is that of one
            mini-batch (gradient caching, https://arxiv.org/abs/2101.06983) and what a frozen vision tower saw. None:
            the whole batch at once.

    A column may hold ``row_order`` (B,): its rows are those of the batch in this order, such as by length.
    """

    def __init__(self, model: SentenceTransformer, mini_batch_size: int | None = None) -> None:
        super().__init__()
        if mini_batch_size is not None and mini_batch_size < 1:
            raise ValueError(f"mini_batch_size is {mini_batch_size}; give at least 1, or None for the whole batch.")
        self.model = model
        self.mini_batch_size = mini_batch_size  # type: ignore[assignment]  # None turns the mixin's caching off
        self.uses_gradient_cache = mini_batch_size is not None
        self._seen = SeenPictures(model)
        self.counts: defaultdict[str, Any] = defaultdict(int)  # numbers or, not to wait for the device, tensors

    def compare(self, embeddings: list[Tensor], labels: Tensor | None = None) -> Tensor:
        """The loss, 0-d float32, of ``embeddings`` per column, each (B, D) of length 1; ``labels`` as in forward."""
        raise NotImplementedError

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None) -> Tensor:
        """Mean loss, 0-d, of features per column; ``labels`` as the class says. Raises NotFinite before gradients."""
        columns = [dict(column) for column in sentence_features]
        self._orders = [column.pop(ROW_ORDER, None) for column in columns]
        if torch.is_grad_enabled():
            self.counts.setdefault("started", time.perf_counter())
            for mask in (column["attention_mask"] for column in columns):
                self.counts["tokens"] += mask.sum()
                self.counts["slots"] += mask.numel()
        if not self.uses_gradient_cache:
            return self.calculate_loss([[column] for column in self._embed_at_once(columns)], labels)
        self._postponed: list[tuple[Tensor, Tensor]] = []
        self._seen.start()
        loss = self.forward_cached(columns, labels)
        # Worth nothing, but the temperature's gradient now arrives scaled as the embeddings' do: by gradient
        # accumulation and by loss scaling.
        return loss + sum((parameter - parameter.detach()) * gradient for parameter, gradient in self._postponed)

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: Tensor | None = None, *, with_backward: bool = False
    ) -> Tensor:
        """The loss of mini-batches of embeddings per column, as the mixin asks for it."""
        embeddings = [torch.cat(column) for column in reps]
        whole = zip(embeddings, self._orders, strict=True)
        loss = self.compare([one if order is None else one[order.argsort()] for one, order in whole], labels)
        if not loss.isfinite():
            raise NotFinite(loss, labels)
        if not with_backward:
            return loss
        leaves = [embeddings for column in reps for embeddings in column]
        temperatures: list[Tensor] = [one for one in self.similarity.parameters() if one.requires_grad]
        gradients = torch.autograd.grad(loss, leaves + temperatures)
        for leaf, gradient in zip(leaves, gradients, strict=False):
            leaf.grad = gradient
        self._postponed = list(zip(temperatures, gradients[len(leaves) :], strict=True))
        return loss.detach()

    def embed_minibatch(
        self, sentence_feature: dict[str, Tensor], begin: int, end: int, with_grad: bool, copy_random_state: bool,
        random_state: RandContext | None = None,
    ) -> tuple[Tensor, RandContext | None]:  # fmt: skip
        """The host's; without gradients only its first pass of a training step copies random states."""
        given = (sentence_feature, begin, end, with_grad, copy_random_state, random_state)
        if not (copy_random_state or with_grad):
            return super().embed_minibatch(*given)
        with self._seen.of((id(sentence_feature), begin), again=with_grad):
            return super().embed_minibatch(*given)

    @property
    def similarity(self) -> "Similarity":
        """The model's similarity, which holds the temperature."""
        return similarity_of(self.model)

    def own_logits(self, queries: Tensor, candidates: list[Tensor]) -> Tensor:
        """Logits (B, C) float32 of every query (B, D) and its own candidates, C columns (B, D)."""
        with torch.autocast(queries.device.type, enabled=False):
            scores = torch.einsum("bd,bcd->bc", queries.float(), torch.stack(candidates, dim=1).float())
            return scores / self.similarity.temperature

    def get_config_dict(self) -> dict[str, Any]:
        """What the model card says of this loss."""
        return {"mini_batch_size": self.mini_batch_size, "temperature": "held by the model"}

    def _embed_at_once(self, columns: list[dict[str, Tensor]]) -> list[Tensor]:
        embeddings: list[Tensor] = []
        for column in columns:
            # DDP looks for parameters without a gradient (a vision tower's, in a column of texts) only below what the
            # last forward returns. So every forward hands on what came before it, under a name that no model reads.
            embeddings.append(self.model({**column, "prompt_length": tuple(embeddings)})["sentence_embedding"])
        return embeddings


class InfoNCE(EmbeddingLoss):
    """Contrastive loss with the temperature that the model holds and learns (recipe.md §4.1-§4.4).

    The columns of a batch are queries, positives and, optionally, K columns of hard negatives. Every query is scored
    against all positives and all hard negatives of all ranks; the loss is the cross-entropy of its own positive. Each
    rank computes the rows of its own queries, and gradients flow to every rank's embeddings, so training on R ranks
    with B rows is training on one with R·B.

    Without ids, a candidate that is right for two rows counts as a negative of one. With them, as an integer ``label``
    column (B, 2 + K + P) of ``qid, did, dids of the K negatives, other positives' dids…`` padded with -1, candidates
    that are positives of a row, and positives of rows of the same query, are left out of its negatives.

    Args:
        model, mini_batch_size: As in :class:`EmbeddingLoss`.
        symmetric: Take the mean of this and of the cross-entropy of every positive among the queries of all ranks.
        shared: False: a query is scored against its own positive and its own hard negatives only.

    Raises:
        ValueError: ``symmetric`` without ``shared``, ``mini_batch_size`` below 1; of a batch, too few columns or a
            ``label`` of another shape or type.
        NotFinite: A batch's loss is infinite or no number; no weight was changed by it.

    References:
        The reference's loss (recipe.md §4.2), but remote rows carry gradients and logits are float32 (§13, 13 and 18).
    """

    def __init__(
        self,
        model: SentenceTransformer,
        mini_batch_size: int | None = None,
        *,
        symmetric: bool = False,
        shared: bool = True,
    ) -> None:
        super().__init__(model, mini_batch_size)
        if symmetric and not shared:
            raise ValueError("symmetric=True compares positives with all queries, shared=False with none; choose one.")
        self.symmetric, self.shared = symmetric, shared

    def compare(self, embeddings: list[Tensor], labels: Tensor | None = None) -> Tensor:
        """The loss of the embeddings of queries, positives, hard negatives…; see the base class."""
        if len(embeddings) < (2 if self.shared else 3):
            needed = "queries and positives" if self.shared else "queries, positives and (shared=False) negatives"
            raise ValueError(f"InfoNCE needs columns of {needed}, got {len(embeddings)} column(s).")
        queries, *candidates = embeddings
        width = 1 + len(candidates)  # of a qid and the candidates' dids
        if labels is not None and (labels.ndim != 2 or labels.shape[1] < width or labels.is_floating_point()):
            raise ValueError(
                f"The label column has shape {tuple(labels.shape)} and dtype {labels.dtype}; give integers "
                f"(B, 2 + K + P): qid, did, dids of the K = {width - 2} negatives, other positives padded with -1; or "
                "leave the column out."
            )
        if labels is None:
            labels = torch.full((len(queries), width), PADDING_ID, device=queries.device)
        right = [1, *range(width, labels.shape[1])]  # the columns of a row's positives
        if not self.shared:
            known = held(labels[:, right], labels[:, 1:width])  # (B, 1 + K)
            return self._cross_entropy(self.own_logits(queries, candidates), torch.zeros_like(labels[:, 0]), known)

        own = get_rank() * len(queries) + torch.arange(len(queries), device=queries.device)  # (B,)
        everything = from_all_ranks(torch.stack(embeddings if self.symmetric else candidates, dim=1))
        everyone = from_all_ranks(labels)  # (R·B, 2 + K + P)
        pool = everything[:, -len(candidates) :].transpose(0, 1).flatten(0, 1)  # (R·B·(1 + K), D), positives first
        known = held(labels[:, right], everyone[:, 1:width].T.flatten())  # (B, R·B·(1 + K))
        same_query = held(labels[:, :1], everyone[:, 0])  # (B, R·B)
        known[:, : len(everyone)] |= same_query
        loss = self._cross_entropy(self.similarity(queries, pool), own, known)
        if not self.symmetric:
            return loss
        known = held(everyone[:, right], labels[:, 1]).T | same_query  # (B, R·B)
        return (loss + self._cross_entropy(self.similarity(candidates[0], everything[:, 0]), own, known)) / 2

    def _cross_entropy(self, logits: Tensor, own: Tensor, known: Tensor) -> Tensor:
        """Mean cross-entropy of columns ``own`` (B,) without those that are ``known`` (B, C) to be right as well."""
        known = known.scatter(1, own[:, None], False)
        if torch.is_grad_enabled():
            self.counts["masked"] += known.sum()
            self.counts["negatives"] += logits.numel() - len(logits)
        return cross_entropy(logits.masked_fill(known, -torch.inf), own)


class DistillKL(EmbeddingLoss):
    """Kullback-Leibler divergence of a query's scores of its own candidates from a teacher's (recipe.md §7.6).

    The columns of a batch are queries and K candidates. The ``label`` column (B, 2, K) holds, in floats, the teacher's
    scores (-2 to 2, see :func:`score_table`), and 1 where a candidate is known to be right, else 0. The teacher's
    distribution is softmax(score / 2 / temperature), and the temperature learns from the student's side only.

    Args:
        model, mini_batch_size: As in :class:`EmbeddingLoss`.
        infonce_weight: Added so many times: minus the logarithm of the probability that the student gives to all right
            candidates of a row together; of a row that has none, nothing. Means are over all rows.

    Raises:
        ValueError: ``mini_batch_size`` is below 1; of a batch, ``label`` is missing or of another shape or type.
        NotFinite: A batch's loss is infinite or no number; no weight was changed by it.
    """

    def __init__(
        self, model: SentenceTransformer, mini_batch_size: int | None = None, *, infonce_weight: float = 0.0
    ) -> None:
        super().__init__(model, mini_batch_size)
        self.infonce_weight = infonce_weight

    def compare(self, embeddings: list[Tensor], labels: Tensor | None = None) -> Tensor:
        """The loss of the embeddings of queries and candidates…; see the base class."""
        queries, *candidates = embeddings
        shape = (len(queries), 2, len(candidates))
        if labels is None or labels.shape != shape or not labels.is_floating_point():
            found = "is missing" if labels is None else f"has shape {tuple(labels.shape)} and dtype {labels.dtype}"
            raise ValueError(
                f"The label column {found}; give floats {shape}: for every row the teacher's scores of its "
                f"{len(candidates)} candidates, and 1 where one of them is right, else 0."
            )
        scores, right = labels.float().unbind(dim=1)  # (B, K) each
        teacher = (scores / 2 / self.similarity.temperature.detach()).log_softmax(dim=1)
        student = self.own_logits(queries, candidates).log_softmax(dim=1)
        loss = kl_div(student, teacher, log_target=True, reduction="batchmean")
        if self.infonce_weight:
            rows = right.bool().any(dim=1)
            share = student[rows].masked_fill(~right[rows].bool(), -torch.inf).logsumexp(dim=1)
            loss = loss - self.infonce_weight * share.sum() / len(queries)
        return loss


def held(sets: Tensor, ids: Tensor) -> Tensor:
    """Mark, (B, C) bool, which ``ids`` (C,) or (B, C) are in the row's set (B, S); padding never is."""
    ids = ids.masked_fill(ids == PADDING_ID, PADDING_ID - 1)
    found = torch.zeros(len(sets), ids.shape[-1], dtype=torch.bool, device=sets.device)
    for column in sets.T:  # one after the other, for (B, C, S) may be large
        found |= column[:, None] == ids
    return found


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
