"""Weights that FSDP2 splits over devices: what the hosts' trainers lack to train, measure, save and resume them."""

from functools import partial
from typing import Any

import torch
from accelerate.utils import FullyShardedDataParallelPlugin, load_fsdp_model
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from transformers.distributed.fsdp import get_fsdp_ckpt_kwargs

INNER = "0.model."  # where Sentence Transformers' models hold one of transformers


class ShardsWeights:
    """Makes a host's trainer train weights that FSDP2 splits: ``class T(ShardsWeights, SentenceTransformerTrainer)``.

    Split are the layers of the language model, each gathered while it works, and everything else together, gathered
    for a step. The temperature is a single number, which cannot be split; every device holds it.

    Raises:
        ValueError: accelerate is told to split by DeepSpeed, by FSDP1, or to save in pieces.
    """

    accelerator: Any
    args: Any
    is_deepspeed_enabled: bool
    is_fsdp_enabled: bool
    model: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.is_deepspeed_enabled:
            raise ValueError(
                "accelerate is told to split weights by DeepSpeed, which takes no temperature that is a single number "
                "and whose checkpoints Sentence Transformers cannot read. Launch with recipes/accelerate/ddp.yaml or "
                "fsdp2.yaml; mini_batch_size, gradient_checkpointing and LoRA make a copy small."
            )
        if self.is_fsdp_enabled:
            self._split(self.accelerator.state.fsdp_plugin)

    def _split(self, plugin: FullyShardedDataParallelPlugin) -> None:
        kept = str(plugin.state_dict_type).rsplit(".", 1)[-1]
        if plugin.fsdp_version != 2 or kept != "FULL_STATE_DICT":
            raise ValueError(
                f"accelerate is told fsdp_version {plugin.fsdp_version} and fsdp_state_dict_type {kept}; give 2 and "
                "FULL_STATE_DICT, as recipes/accelerate/fsdp2.yaml does."
            )
        inner = self.model[0].model
        plugin.transformer_cls_names_to_wrap = [type(inner.get_decoder().layers[0]).__name__]
        plugin.ignored_modules = [module for name, module in inner.named_children() if name == "similarity"]
        if plugin.mixed_precision_policy is not None:
            # accelerate would add gradients and return embeddings in the precision of the layers.
            dtype = plugin.mixed_precision_policy.param_dtype
            plugin.mixed_precision_policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
        self.model.base_model_prefix = "0"  # else accelerate takes the module Normalize for a layer that has weights
        self.model.model_card_data.generate_widget_examples = False  # the rank that saves would embed some, alone
        inner.base_model.register_forward_hook(_reach_all)

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        prepared = super()._prepare_for_training(*args, **kwargs)  # type: ignore[misc]
        if self.is_fsdp_enabled:  # evaluators call the model by another name than a step does
            register_fsdp_forward_method(self.model, "encode" if hasattr(self.model, "encode") else "predict")
        return prepared

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        if not self.args.should_save:  # the hosts ask every rank, and Sentence Transformers' would all write
            return
        if state_dict is None:
            super()._save(output_dir)  # type: ignore[misc]
            return
        inner = self.model[0].model
        weights = {name.removeprefix(INNER): tensor for name, tensor in state_dict.items()}
        inner.save_pretrained = partial(inner.save_pretrained, state_dict=weights)
        try:
            super()._save(output_dir)  # type: ignore[misc]
        finally:
            del inner.save_pretrained  # the class's own again

    def _load_from_checkpoint(self, checkpoint_path: str, model: nn.Module | None = None) -> None:
        if model is None:
            super()._load_from_checkpoint(checkpoint_path)  # type: ignore[misc]
            return
        plugin = self.accelerator.state.fsdp_plugin
        load_fsdp_model(plugin, self.accelerator, model, checkpoint_path, **get_fsdp_ckpt_kwargs())


def _reach_all(backbone: nn.Module, inputs: Any, output: Any) -> Any:
    """Give a gradient of 0 to what a batch does not reach, as a vision tower without pictures: every rank waits for it.

    Layers that are split by themselves are reached by every batch.
    """
    if torch.is_grad_enabled():
        whole = [one for one in backbone.parameters() if one.requires_grad and not isinstance(one, DTensor)]
        output.last_hidden_state = output.last_hidden_state + sum(one.flatten()[0] * 0 for one in whole)
    return output
