"""Random changes to training pictures that leave what they show, and where, as it is."""

import random
from collections.abc import Sequence

import torch
from torchvision.transforms import v2

from umarvel_hf.messages import Message, load_image

WHITE = 255


class Augmentation:
    """Shifts, scales and recolours every picture of a chat.

    Nothing is mirrored or turned: captions say what is left of what.

    Args:
        shift: Largest shift as a share of the side.
        scale: Largest change of size as a share of it.
        colour: Largest change of brightness, contrast and saturation as a share of them; that of the hue is a tenth of
            it.
        greyscale: Share of pictures that lose their colours.
    """

    def __init__(self, *, shift: float, scale: float, colour: float, greyscale: float) -> None:
        self.change = v2.Compose(
            [
                v2.RandomAffine(degrees=0, translate=(shift, shift), scale=(1 - scale, 1 + scale), fill=WHITE),
                v2.ColorJitter(brightness=colour, contrast=colour, saturation=colour, hue=colour / 10),
                v2.RandomGrayscale(greyscale),
            ]
        )

    def __call__(self, messages: Sequence[Message], draw: str) -> list[Message]:
        """The chat with every ``image`` (what ``load_image`` takes) replaced by a changed picture.

        Args:
            draw: What happens to the pictures follows from this alone.
        """
        with torch.random.fork_rng(devices=[]):  # the transforms draw from torch's global state
            torch.default_generator.manual_seed(random.Random(draw).getrandbits(63))
            return [{**message, "content": [self._part(part) for part in message["content"]]} for message in messages]

    def _part(self, part: Message) -> Message:
        return part if part.get("image") is None else {**part, "image": self.change(load_image(part["image"]))}
