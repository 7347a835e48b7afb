"""Embedders that others have trained: what each family means by a vector, as its authors' code computes it.

A family is data: how a text is written, which token is pooled, which positions and attention. What is written here was
read in the code that its authors published; where their papers and their code differ, the code made the vectors.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import Any

from umarvel_hf.chat_template import control_tokens, with_data
from umarvel_hf.hub import split_revision

QWEN_SYSTEM, QWEN_USER = "<|im_start|>system\n", "<|im_end|>\n<|im_start|>user\n"
QWEN_ASSISTANT = "<|im_end|>\n<|im_start|>assistant\n"
QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
QWEN_VIDEO = "<|vision_start|><|video_pad|><|vision_end|>"


@dataclass(frozen=True)
class Text:
    """How a family writes an item; see ``family_template.jinja``.

    Args:
        head: What stands first.
        default_instruction: Where no instruction is given; where the family has one, an instruction stands between
            ``head`` and ``after_instruction``, otherwise before the text.
        gap: Between media, instruction and text.
        ending: What closes an instruction that ends in no punctuation.
        suffixes: After text alone, media alone, and both.
        tail: What stands last; the token that is pooled is its last one.
    """

    head: str
    tail: str
    image: str
    video: str
    default_instruction: str = ""
    after_instruction: str = ""
    gap: str = ""
    ending: str = ""
    suffixes: tuple[str, str, str] = ("", "", "")


@dataclass(frozen=True)
class Family:
    """Every family here attends causally and pools the last token.

    Args:
        text: How it writes an item.
        positions: Of :class:`UMarvelConfig`.
        side: Pixels that become one token, along one side.
        tokens: Of a picture, least and most; None: as the checkpoint's processor says.
        architectures: Classes that only its checkpoints name.
        repositories: Where its authors published it.
    """

    text: Text
    positions: str
    side: int
    repositories: Sequence[str]
    tokens: tuple[int, int] | None = None
    architectures: Sequence[str] = ()


REFERENCE = "u-marvel"
REFERENCE_REPOSITORIES = ("TencentBAC/U-MARVEL-Qwen2VL-7B-Instruct", "TencentBAC/U-MARVEL-Qwen3VL-4B-Instruct")
FAMILIES = {
    # https://github.com/Code-kunkun/LamRA: the state before <emb>, which is the last that causal attention lets count;
    # inputs reach the decoder as embeddings without positions, as in the reference (recipe.md §1.4, §2.6, §3).
    "lamra": Family(
        Text(
            head=f"{QWEN_SYSTEM}You are a helpful assistant.{QWEN_USER}",
            tail=QWEN_ASSISTANT,
            image=QWEN_IMAGE,
            video=QWEN_VIDEO,
            suffixes=(
                "\nSummarize above sentence in one word: ",
                "\nSummarize above image in one word: ",
                "\nSummarize above image and sentence in one word: ",
            ),
        ),
        positions="sequential",
        side=28,
        repositories=("code-kunkun/LamRA-Ret", "code-kunkun/LamRA-Ret-Pretrained"),
    ),
    # https://huggingface.co/Alibaba-NLP/gme-Qwen2-VL-2B-Instruct, gme_inference.py: inputs reach the decoder as
    # embeddings without positions.
    "gme": Family(
        Text(
            head=QWEN_SYSTEM,
            default_instruction="You are a helpful assistant.",
            after_instruction=QWEN_USER,
            tail=f"{QWEN_ASSISTANT}<|endoftext|>",
            image=QWEN_IMAGE,
            video=QWEN_VIDEO,
        ),
        positions="sequential",
        side=28,
        tokens=(256, 1280),
        architectures=("GmeQwen2VL", "GmeQwen2VLForVision"),
        repositories=("Alibaba-NLP/gme-Qwen2-VL-2B-Instruct", "Alibaba-NLP/gme-Qwen2-VL-7B-Instruct"),
    ),
    # https://github.com/TIGER-AI-Lab/VLM2Vec: no chat, and no <|vision_start|>, by which its code finds a picture's
    # places: so pictures have the positions of text.
    "vlm2vec": Family(
        Text(head="", tail="", image="<|image_pad|>", video="<|video_pad|>", gap=" "),
        positions="sequential",
        side=28,
        repositories=("TIGER-Lab/VLM2Vec-Qwen2VL-2B", "TIGER-Lab/VLM2Vec-Qwen2VL-7B", "VLM2Vec/VLM2Vec-V2.0"),
    ),
    # https://github.com/QwenLM/Qwen3-VL-Embedding, qwen3_vl_embedding.py. The report has <|endoftext|> last, the code
    # that made the published numbers does not (issue 4 there).
    "qwen3-vl-embedding": Family(
        Text(
            head=QWEN_SYSTEM,
            default_instruction="Represent the user's input.",
            after_instruction=QWEN_USER,
            ending=".",
            tail=QWEN_ASSISTANT,
            image=QWEN_IMAGE,
            video=QWEN_VIDEO,
        ),
        positions="native",
        side=32,
        tokens=(4, 1800),
        repositories=("Qwen/Qwen3-VL-Embedding-2B", "Qwen/Qwen3-VL-Embedding-8B"),
    ),
}
NAMES = (REFERENCE, *FAMILIES)


def find_family(source: str, architectures: Sequence[str], *, is_reference: bool) -> str:
    """The family of a checkpoint, where it is known for sure.

    Args:
        source: What the checkpoint was asked for as.
        architectures: As its configuration names them.
        is_reference: Whether it holds what only the reference implementation writes.

    Raises:
        ValueError: Nothing tells: classes of these names are used by several families.
    """
    known = {name: family.repositories for name, family in FAMILIES.items()} | {REFERENCE: REFERENCE_REPOSITORIES}
    for name, repositories in known.items():
        if split_revision(source)[0].lower() in map(str.lower, repositories):
            return name
    for name, family in FAMILIES.items():
        if set(architectures) & set(family.architectures):
            return name
    if is_reference:
        return REFERENCE
    raise ValueError(
        f"{source}: its files do not tell which family it is of (architecture "
        f"{', '.join(architectures) or 'unknown'}); pass family (--family), one of {', '.join(NAMES)}."
    )


def family_template(text: Text, processor: Any) -> str:
    """The Jinja template that writes items as a family does; it also runs where our package is not installed."""
    data = asdict(text) | {
        "marks": _punctuation() if text.ending else "",
        "control_tokens": control_tokens(processor),
    }
    return with_data(files("umarvel_hf").joinpath("family_template.jinja"), data)


def _punctuation() -> str:
    """All that Unicode calls punctuation and two bytes can hold."""
    return "".join(one for one in map(chr, range(0x10000)) if unicodedata.category(one).startswith("P"))
