"""Make a checkpoint's chat template: our one text format around the markers of a backbone's own template."""

import json
import re
from dataclasses import asdict, dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from itertools import takewhile
from typing import Any

EMB, INSTRUCTION_START, INSTRUCTION_END = "<emb>", "<instruction_start>", "<instruction_end>"
PLAIN_TEXT = "{#- plain text -#}\n"
MARKS = ("\u0011", "\u0012", "\u0013", "\u0014")


@dataclass(frozen=True)
class Markers:
    """What a backbone writes around the turns of a chat and in place of media ("" where it takes none)."""

    head: str
    to_assistant: str
    to_user: str
    tail: str
    closing: str
    image: str
    video: str


def plain_markers(processor: Any) -> Markers:
    """Markers for a backbone without a chat template of its own: named turns, and the processor's media tokens."""
    return Markers(
        head="User: ",
        to_assistant="\nAssistant: ",
        to_user="\nUser: ",
        tail="\n",
        closing="",
        image=getattr(processor, "image_token", None) or "",
        video=getattr(processor, "video_token", None) or "",
    )


def read_markers(processor: Any, generation_prompt: bool) -> Markers:
    """Find a backbone's markers by rendering its own chat template.

    Args:
        processor: A stock processor.
        generation_prompt: Whether the opening of one more assistant turn closes the text, as in the reference's
            evaluation (recipe.md §2.3).
    """
    if not (processor.chat_template or processor.tokenizer.chat_template):
        return plain_markers(processor)

    def render(*turns: list[str], closing: bool = False) -> str:
        messages = [
            {"role": ("user", "assistant")[index % 2], "content": [_part(content) for content in turn]}
            for index, turn in enumerate(turns)
        ]
        template = processor.chat_template or processor.tokenizer.chat_template
        return processor.tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=closing
        )

    first, second, third, fourth = MARKS
    chat = render([first], [second], [third], [fourth])
    if any(chat.count(mark) != 1 for mark in MARKS):
        return plain_markers(processor)  # the template reads plain strings only, so it cannot place media either
    head, to_assistant, to_user, _, tail = re.split(f"[{''.join(MARKS)}]", chat)
    closed = render([first], [second], closing=True)
    return Markers(
        head=head,
        to_assistant=to_assistant,
        to_user=to_user,
        tail=tail,
        closing=closed.removeprefix(render([first], [second])) if generation_prompt else "",
        image=_inserted(render([first]), render(["image", first])),
        # A template may leave its films to the processor, which then has a token for them.
        video=_inserted(render([first]), render(["video", first])) or getattr(processor, "video_token", None) or "",
    )


def make_template(processor: Any, generation_prompt: bool) -> str:
    """The Jinja template of a U-MARVEL checkpoint, for a processor that already knows our three tokens."""
    data = asdict(read_markers(processor, generation_prompt)) | {
        "emb": EMB,
        "instruction_start": INSTRUCTION_START,
        "instruction_end": INSTRUCTION_END,
        "control_tokens": control_tokens(processor),
    }
    return with_data(files("umarvel_hf.modeling").joinpath("chat_template.jinja"), data)


def with_data(body: Traversable, data: dict[str, Any]) -> str:
    """A whole template: what it reads, a line a name, then its body, in which our one way to write a user's text is."""
    lines = [f"{{%- set {name} = {json.dumps(value, ensure_ascii=False)} -%}}" for name, value in data.items()]
    plain = files("umarvel_hf").joinpath("plain_text.jinja").read_text(encoding="utf-8")
    return "\n".join(lines) + "\n" + body.read_text(encoding="utf-8").replace(PLAIN_TEXT, plain)


def data_of(template: str) -> dict[str, str]:
    """What stands above a template, as JSON by name; above one that :func:`with_data` did not write, who knows what."""
    return dict(re.findall(r"^\{%- set (\w+) = (.*) -%\}$", template, flags=re.MULTILINE))


def control_tokens(processor: Any) -> list[str]:
    """Every string that means more than itself to tokenizer or processor, longest first."""
    added = processor.tokenizer.added_tokens_decoder.values()
    spelled = {token.content for token in added if token.special or token.content.startswith(("<", "["))}
    spelled |= {value for name, value in vars(processor).items() if name.endswith("_token") and isinstance(value, str)}
    # A single character is text; as a token it could not be broken up either.
    return sorted((token for token in spelled if len(token) > 1), key=lambda token: (-len(token), token))


def _part(content: str) -> dict[str, str]:
    return {"type": content} if content in ("image", "video") else {"type": "text", "text": content}


def _inserted(before: str, after: str) -> str:
    """What ``after`` holds between the longest beginning and the longest ending it shares with ``before``."""
    start = _shared(before, after)
    before, after = before[start:], after[start:]
    return after[: len(after) - _shared(before[::-1], after[::-1])]


def _shared(left: str, right: str) -> int:
    """How many characters two texts share from their beginnings."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False)))
