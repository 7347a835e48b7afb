"""Padding-free execution: a batch as one row of tokens in which no sequence sees another."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from umarvel_hf._torchvision import ensure_torchvision

ensure_torchvision()
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from umarvel_hf.modeling.modeling_umarvel import sequential_positions
from umarvel_hf.vision import seen_once

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # torch before 2.10
    varlen_attn = None  # type: ignore[assignment]
TAKES_GROUPS = varlen_attn is not None and "enable_gqa" in inspect.signature(varlen_attn).parameters

ATTENTION = "umarvel_packed"
POSITIONED_BY = {"image_grid_thw", "video_grid_thw", "second_per_grid_ts", "mm_token_type_ids"}


def can_pack(model: Any) -> bool:
    """Whether a ``UMarvelModel`` is on a GPU whose kernels take sequences of many lengths without padding."""
    config = model.config.get_text_config()
    # Of other backbones the vision tower would get the sequences' ends, too.
    if model.device.type != "cuda" or not _attends_fully(config) or not hasattr(model.vlm, "get_rope_index"):
        return False
    if config._attn_implementation.startswith("flash_attention"):
        return True
    half = model.dtype in (torch.bfloat16, torch.float16)
    able = torch.cuda.get_device_capability(model.device) >= (8, 0) and half
    return able and TAKES_GROUPS and config._attn_implementation == "sdpa"


@contextmanager
def packed_attention(model: Any) -> Iterator[None]:
    """Let the decoder attend within sequences; flash attention does so by itself."""
    config = model.config.get_text_config()
    usual = config._attn_implementation
    if not usual.startswith("flash_attention"):
        config._attn_implementation = ATTENTION
    try:
        yield
    finally:
        config._attn_implementation = usual


def embed_packed(model: Any, features: dict[str, Any]) -> Tensor:
    """What a ``UMarvelModel`` gives for a processed batch, within :func:`packed_attention`.

    Args:
        features: As the processor made them, padded: ``input_ids`` and ``attention_mask`` (B, T), pixels, grids.

    Returns:
        (B, D) float32.
    """
    features = seen_once(model.vlm, features, all_seen=True)  # flash attention's tower would get the ends below
    ids, mask = features["input_ids"], features["attention_mask"].bool()
    lengths = mask.sum(dim=1, dtype=torch.int32)
    ends = nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
    longest = int(lengths.max())
    passed = set(inspect.signature(model.vlm.forward).parameters) & set(features)
    hidden = model.vlm(
        input_ids=ids[mask][None],
        attention_mask=None,
        position_ids=_positions(model, features)[..., mask].unsqueeze(-2),
        use_cache=False,
        cu_seq_lens_q=ends,
        cu_seq_lens_k=ends,
        max_length_q=longest,
        max_length_k=longest,
        **{name: features[name] for name in passed - {"input_ids", "attention_mask", "mm_token_type_ids"}},
    ).last_hidden_state[0]
    states = hidden.new_zeros(*ids.shape, hidden.shape[-1])
    states[mask] = hidden
    pooled: Tensor = model.pool(states, ids, mask)
    return pooled


def _positions(model: Any, features: dict[str, Any]) -> Tensor:
    """(B, T), or (axes, B, T) where pictures have places of their own."""
    ids, mask = features["input_ids"], features["attention_mask"]
    grids = "image_grid_thw" in features or "video_grid_thw" in features
    if model.config.positions == "native" and grids and hasattr(model.vlm, "get_rope_index"):
        taken = POSITIONED_BY & set(features) & set(inspect.signature(model.vlm.get_rope_index).parameters)
        positions: Tensor = model.vlm.get_rope_index(
            ids, attention_mask=mask, **{name: features[name] for name in taken}
        )[0]
        return positions
    return sequential_positions(mask, axes=None)


def _attends_fully(config: Any) -> bool:
    return set(getattr(config, "layer_types", None) or ["full_attention"]) == {"full_attention"}


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    is_causal: bool | None = None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of packed sequences, whose ends are given: queries (1, H, T, d), keys and values (1, h, T, d).

    Where no ends are given (a vision tower cuts its pictures itself) it is torch's scaled dot product.

    Returns:
        (1, T, H, d), and no weights.
    """
    causal = bool(getattr(module, "is_causal", False) if is_causal is None else is_causal)
    if cu_seq_lens_q is None:
        output, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, is_causal=causal, scaling=scaling, **kwargs
        )
        return output, None
    if query.is_cuda:
        q, k, v = (one[0].transpose(0, 1) for one in (query, key, value))  # (T, H, d)
        ends, longest = cu_seq_lens_q, int(max_length_q or 0)
        window, groups = (-1, 0 if causal else -1), key.shape[1] != query.shape[1]
        together: Any = varlen_attn(
            q, k, v, ends, ends, longest, longest, scale=scaling, window_size=window, enable_gqa=groups
        )
        return together[None], None
    lengths = cu_seq_lens_q.diff().tolist()
    sequences = zip(*(states.split(lengths, dim=2) for states in (query, key, value)), strict=True)
    parts = [
        sdpa_attention_forward(module, q, k, v, None, is_causal=causal, scaling=scaling)[0] for q, k, v in sequences
    ]
    return torch.cat(parts, dim=1), None


def _mask(*, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """None of packed sequences, which are kept apart by their ends; of padded ones that of torch's dot product."""
    return None if attention_mask is None else sdpa_mask(attention_mask=attention_mask, **kwargs)


AttentionInterface.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, _mask)
