"""Configuration of a U-MARVEL embedder: a vision-language backbone and what changes the meaning of a vector."""

from typing import Any

import transformers
from packaging.version import Version
from transformers import AutoConfig, PretrainedConfig

MINIMUM_TRANSFORMERS = "5.18.0"
if Version(transformers.__version__) < Version(MINIMUM_TRANSFORMERS):
    raise ImportError(
        f"This checkpoint needs transformers >= {MINIMUM_TRANSFORMERS}, found {transformers.__version__}, under which "
        "its vectors would differ silently. Upgrade it: pip install -U 'transformers>=5.18'."
    )

POOLINGS = ("mean", "last")
POSITIONS = ("native", "sequential")


class UMarvelConfig(PretrainedConfig):
    """Wraps the configuration of any vision-language backbone.

    Every field but ``vlm_config`` and ``init_temperature`` changes what a vector means, so all are stored with the
    weights and none is passed at run time.

    Args:
        vlm_config: The backbone's own configuration (or its dict, with ``model_type``).
        bidirectional: Every token attends to every token that is not padding (recipe.md §1.3).
        pooling: ``"mean"`` over, or the ``"last"`` of, the tokens that are neither padding nor instruction (§3).
        positions: ``"native"``, the backbone's own position ids; or ``"sequential"``, 0, 1, 2, … on every axis, image
            tokens included, as the reference implementation trained (§1.4).
        normalize: Scale vectors to length 1.
        init_temperature: Temperature of a freshly built similarity, (0, ∞); the trained one is in the weights.
        emb_token_id: Id of ``<emb>``, the token that stands for the assistant's answer.
        instruction_start_token_id: Id of the token that opens the span left out of pooling; None: nothing is left out.
        instruction_end_token_id: Id of the token that closes it; both ids or neither.

    Raises:
        ValueError: A field holds a value that is not listed above.
    """

    model_type = "umarvel"
    sub_configs = {"vlm_config": AutoConfig}

    def __init__(
        self,
        vlm_config: PretrainedConfig | dict[str, Any] | None = None,
        bidirectional: bool = True,
        pooling: str = "mean",
        positions: str = "native",
        normalize: bool = True,
        init_temperature: float = 0.05,
        emb_token_id: int | None = None,
        instruction_start_token_id: int | None = None,
        instruction_end_token_id: int | None = None,
        **kwargs: Any,
    ) -> None:
        if vlm_config is None:
            # transformers builds every configuration once without arguments, to find what differs from the defaults.
            vlm_config = {"model_type": "qwen2_vl"}
        if isinstance(vlm_config, dict):
            vlm_config = dict(vlm_config)
            vlm_config = AutoConfig.for_model(vlm_config.pop("model_type"), **vlm_config)
        self.vlm_config = vlm_config
        self.bidirectional = bidirectional
        self.pooling = pooling
        self.positions = positions
        self.normalize = normalize
        self.init_temperature = init_temperature
        self.emb_token_id = emb_token_id
        self.instruction_start_token_id = instruction_start_token_id
        self.instruction_end_token_id = instruction_end_token_id
        self.check_fields()
        super().__init__(**kwargs)

    def check_fields(self) -> None:
        """Raise ``ValueError`` if a field holds a value that is not listed above."""
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling is {self.pooling!r}; it must be one of {POOLINGS}.")
        if self.positions not in POSITIONS:
            raise ValueError(f"positions is {self.positions!r}; it must be one of {POSITIONS}.")
        if not self.init_temperature > 0:
            raise ValueError(f"init_temperature is {self.init_temperature}; it must be above 0.")
        if (self.instruction_start_token_id is None) != (self.instruction_end_token_id is None):
            raise ValueError(
                f"instruction_start_token_id is {self.instruction_start_token_id} and instruction_end_token_id is "
                f"{self.instruction_end_token_id}; give both, or neither to leave nothing out of pooling."
            )

    def get_text_config(self, *args: Any, **kwargs: Any) -> PretrainedConfig:
        """The configuration of the backbone's decoder."""
        return self.vlm_config.get_text_config()

    @property
    def hidden_size(self) -> int:
        """Dimension D of an embedding."""
        return self.get_text_config().hidden_size


UMarvelConfig.register_for_auto_class()
