"""The trainer: Sentence Transformers' own, with a temperature that the model holds and all ranks agree on."""

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW
from transformers import PreTrainedTokenizerBase

from umarvel_hf.messages import placed
from umarvel_hf.planning import TokenCounter
from umarvel_hf.trainer.adapters import ResumesAdapters
from umarvel_hf.trainer.arguments import UMarvelTrainingArguments
from umarvel_hf.trainer.callbacks import PushWholeModels
from umarvel_hf.trainer.cutting import cut_item
from umarvel_hf.trainer.losses import ROW_ORDER, EmbeddingLoss, InfoNCE, similarity_of
from umarvel_hf.trainer.muon import MuonAdamW, with_muon
from umarvel_hf.trainer.sharding import ShardsWeights

logger = logging.getLogger(__name__)
PIXELS = {"pixel_values", "pixel_values_videos"}
PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


class UMarvelTrainer(ShardsWeights, ResumesAdapters, SentenceTransformerTrainer):
    """``SentenceTransformerTrainer`` whose default loss is :class:`InfoNCE` with the model's learned temperature.

    Everything else (several data sets, gradient accumulation, adapters, evaluators, checkpoints, the Hub) is the
    host's. Beside the loss are logged the temperature, the tokens a second of all ranks together, and what share of
    the padded batches was padding and of the negatives left out as known to be right, since the last time.

    Args:
        model: A U-MARVEL checkpoint as ``SentenceTransformer``.
        args: :class:`UMarvelTrainingArguments`.
        kwargs: As in the host. Columns of a data set are queries, positives and hard negatives, in this order.

    Raises:
        ValueError: The model holds no temperature, or it is not trained although it has a learning rate of its own;
            accelerate is told to split weights in a way that :class:`ShardsWeights` does not know; Muon is asked for
            beside another optimizer than AdamW, or on split weights.
    """

    training_args_class = UMarvelTrainingArguments
    args: UMarvelTrainingArguments

    def __init__(
        self, model: SentenceTransformer | None = None, args: UMarvelTrainingArguments | None = None, **kwargs: Any
    ) -> None:
        super().__init__(model=model, args=args, **kwargs)
        if self.args.push_to_hub:
            self.add_callback(PushWholeModels())
        preprocess, precision = self.data_collator.preprocess_fn, PRECISIONS.get(self.accelerator.mixed_precision)
        if precision is not None:
            preprocess = partial(with_pictures_in, precision, preprocess)
        tokenizer = self.model.tokenizer
        self.data_collator.preprocess_fn = partial(with_texts_cut, tokenizer, self.args.max_text_tokens, preprocess)
        losses = self.loss.values() if isinstance(self.loss, dict) else [self.loss]
        if all(isinstance(loss, EmbeddingLoss) and loss.uses_gradient_cache for loss in losses):
            counter, preprocess = TokenCounter(self.model[0]), self.data_collator.preprocess_fn
            self.data_collator.preprocess_fn = partial(longest_first, counter, preprocess)
        similarity_of(self.model).float()  # whatever a model was cast to, steps of bfloat16 are too coarse for it
        temperatures = [parameter for parameter in similarity_of(self.model).parameters() if parameter.requires_grad]
        if self.args.temperature_learning_rate is not None and not temperatures:
            raise ValueError(
                f"temperature_learning_rate is {self.args.temperature_learning_rate}, but the temperature is frozen. "
                "With an adapter, pass modules_to_save=['similarity'] to LoraConfig."
            )
        coarse = {p.dtype for p in self.model.parameters() if p.requires_grad and p.is_floating_point()} - {
            torch.float32
        }
        if coarse:
            logger.warning(
                "Weights of %s are trained, in which small steps are lost. Load the model with "
                "model_kwargs={'dtype': 'float32'} and set bf16=True, or train an adapter.",
                ", ".join(sorted(map(str, coarse))),
            )
        # The loss reads the temperature outside the wrapped forward, where DDP would wait for it in vain and, told not
        # to, would let it drift between ranks. So DDP leaves it out and its gradient is averaged by hand.
        names = [name for name, parameter in self.model.named_parameters() if any(parameter is t for t in temperatures)]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self.model, names)
        for temperature in temperatures:
            temperature.register_hook(average_over_ranks)

    def get_default_loss(self, model: Any) -> nn.Module:
        """:class:`InfoNCE`, cached if ``args.mini_batch_size`` says so."""
        return InfoNCE(model, mini_batch_size=self.args.mini_batch_size)

    def get_optimizer_cls_and_kwargs(self, args: Any, model: Any = None) -> tuple[Any, Any]:  # type: ignore[override]
        """The host's, with :class:`MuonAdamW` where ``args.muon_learning_rate`` says so."""
        optimizer, settings = super().get_optimizer_cls_and_kwargs(args, model)
        if args.muon_learning_rate is None:
            return optimizer, settings
        if optimizer is not AdamW:
            raise ValueError(
                f"optim is {args.optim.value}, but muon_learning_rate trains linear layers by Muon and all else by "
                "AdamW. Leave one of the two out."
            )
        if self.is_fsdp_enabled:
            raise ValueError(
                "muon_learning_rate is given, but Muon needs whole matrices and FSDP2 splits them. Launch with "
                "recipes/accelerate/ddp.yaml, or leave it out."
            )
        groups = with_muon(settings.pop("optimizer_dict"), self.model, args.muon_learning_rate)
        return MuonAdamW, {**settings, "optimizer_dict": groups}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the temperature wherever there is a loss."""
        if "loss" in logs:
            temperature = round(similarity_of(self.model).temperature.item(), 6)
            logs = logs | {"temperature": temperature} | self._counted()
        super().log(logs, start_time)

    def _counted(self) -> dict[str, float]:
        """Speed and shares of what all ranks trained since the last call; nothing where losses do not count it."""
        losses = self.loss.values() if isinstance(self.loss, dict) else [self.loss]
        counts = [loss.counts for loss in losses if isinstance(loss, EmbeddingLoss) and loss.counts]
        now = time.perf_counter()
        total = [float(sum(one[name] for one in counts)) for name in ("tokens", "slots", "masked", "negatives")]
        total.append(now - min((one["started"] for one in counts), default=now))
        for one in counts:
            one.clear()
        summed = self.accelerator.reduce(torch.tensor(total, device=self.args.device), "sum")
        tokens, slots, masked, negatives, seconds = summed.tolist()
        logs = {}
        if tokens:
            logs["tokens_per_second"] = round(tokens / (seconds / self.args.world_size), 1)
            logs["padding_share"] = round(1 - tokens / slots, 6)
        if negatives:
            logs["masked_share"] = round(masked / negatives, 6)
        return logs


def with_pictures_in(precision: torch.dtype, preprocess: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What ``preprocess`` returns, with pictures in the precision that the vision tower computes in.

    Its first layer would round them to it anyway; a batch of them takes half the memory.
    """
    features = preprocess(*args, **kwargs)
    for name in PIXELS & features.keys():
        features[name] = features[name].to(precision)
    return features


def with_texts_cut(
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
    preprocess: Callable[..., Any],
    inputs: list[Any],
    **kwargs: Any,
) -> Any:
    """What ``preprocess`` returns for inputs whose texts are no longer than so many tokens."""
    return preprocess([cut_item(item, tokenizer, max_tokens) for item in inputs], **kwargs)


def longest_first(counter: TokenCounter, preprocess: Callable[..., Any], inputs: list[Any], **kwargs: Any) -> Any:
    """What ``preprocess`` returns for inputs in the order of their tokens, and this order, under ``row_order``.

    So mini-batches of gradient caching hold rows of like lengths, with hardly any padding.
    """
    order = np.argsort(-counter.count(inputs, kwargs.get("prompt")).counts, kind="stable")
    with placed(inputs, order.tolist()):
        features = preprocess([inputs[at] for at in order], **kwargs)
    return {**features, ROW_ORDER: torch.from_numpy(order)}


def average_over_ranks(gradient: Tensor) -> Tensor:
    """The mean of a gradient over all ranks; itself where there is one."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        gradient /= dist.get_world_size()
    return gradient
