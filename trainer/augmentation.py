"""Random changes to training pictures that leave what they show, and where, as it is."""

import random
from typing import Any

import torch
from torchvision.transforms import v2
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from umarvel_hf.messages import load_image

WHITE = 255


class Augmentation(TrainerCallback):
    """A transform for ``datasets.Dataset.with_transform``: shifts, scales and recolours every picture of every chat.

    Nothing is mirrored or turned: captions say what is left of what. What happens to a picture depends on seed, epoch
    and row alone, so a run that is continued sees what an unbroken one sees. Pass it to the trainer as a callback, too,
    which is how it learns the epoch.

    Args:
        shift: Largest shift as a share of the side.
        scale: Largest change of size as a share of it.
        colour: Largest change of brightness, contrast and saturation as a share of them; that of the hue is a tenth of
            it.
        greyscale: Share of pictures that lose their colours.
        seed: Seed of the draws.
    """

    def __init__(self, *, shift: float, scale: float, colour: float, greyscale: float, seed: int) -> None:
        self.seed, self.epoch = seed, 0
        self.change = v2.Compose(
            [
                v2.RandomAffine(degrees=0, translate=(shift, shift), scale=(1 - scale, 1 + scale), fill=WHITE),
                v2.ColorJitter(brightness=colour, contrast=colour, saturation=colour, hue=colour / 10),
                v2.RandomGrayscale(greyscale),
            ]
        )

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refuse workers that would not see the epoch change."""
        if args.dataloader_persistent_workers:
            raise ValueError(
                "dataloader_persistent_workers is True; workers that outlive an epoch would change every picture as in "
                "the first one. Leave it out."
            )

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note the epoch, also one that is gone on with in its middle."""
        self.epoch = int(state.epoch or 0)

    def __call__(self, rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Rows of :func:`mbeir_rows` with every ``image`` of their chats (paths) replaced by a changed PIL picture."""
        qids = [label[0] for label in rows["label"]]
        return {
            name: column
            if name == "label"
            else [
                self._chat(chat, f"{self.seed}-{self.epoch}-{qid}-{name}")
                for qid, chat in zip(qids, column, strict=True)
            ]
            for name, column in rows.items()
        }

    def _chat(self, messages: list[dict[str, Any]], draw: str) -> list[dict[str, Any]]:
        with torch.random.fork_rng(devices=[]):  # the transforms draw from torch's global state
            torch.default_generator.manual_seed(random.Random(draw).getrandbits(63))
            return [{**message, "content": [self._part(part) for part in message["content"]]} for message in messages]

    def _part(self, part: dict[str, Any]) -> dict[str, Any]:
        return part if part["image"] is None else {**part, "image": self.change(load_image(part["image"]))}
