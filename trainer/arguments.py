"""Training arguments: the host's, and the few that are ours."""

from dataclasses import dataclass, field

from sentence_transformers import SentenceTransformerTrainingArguments

TEMPERATURE_PATTERN = r"similarity\..*log_temperature$"


@dataclass
class UMarvelTrainingArguments(SentenceTransformerTrainingArguments):
    """``SentenceTransformerTrainingArguments`` with the temperature's own learning rate, gradient caching, cut texts.

    Args:
        mini_batch_size: Rows embedded at a time under gradient caching; None: the whole batch at once.
        temperature_learning_rate: Learning rate of the logarithm of the temperature; None: that of the model.
        muon_learning_rate: Train the weights of linear layers by Muon at this rate, but those that
            ``learning_rate_mapping`` names, and all others by AdamW; None: AdamW trains all.
        max_text_tokens: Longer texts are cut, in training only (recipe.md §2.2); instructions are not.
    """

    mini_batch_size: int | None = field(
        default=None, metadata={"help": "Rows embedded at a time; None: the whole batch."}
    )
    temperature_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the log-temperature; None: that of the model."}
    )
    muon_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of linear layers, by Muon; None: AdamW trains them, too."}
    )
    max_text_tokens: int = field(default=480, metadata={"help": "Longer texts are cut, in training only."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature_learning_rate is not None:
            assert isinstance(self.learning_rate_mapping, dict)  # the host has read it, whatever it was given as
            self.learning_rate_mapping = {
                **self.learning_rate_mapping,
                TEMPERATURE_PATTERN: self.temperature_learning_rate,
            }
