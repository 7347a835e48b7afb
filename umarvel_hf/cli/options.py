"""What options have in common: lists, amounts of memory, devices."""

import re
from pathlib import Path
from typing import Annotated, Literal

import typer

Model = Annotated[str, typer.Argument(help="Folder or Hub id of a checkpoint.")]
Out = Annotated[Path, typer.Argument(help="Folder to write.")]
Data = Annotated[Path | None, typer.Option(help="Folder in M-BEIR's layout (default: the embedded benchmark).")]
Text = Annotated[str | None, typer.Argument(help="A text to look for.")]
Picture = Annotated[Path | None, typer.Option(help="A picture to look for, or to look for with the text.")]


class Names(list[str]):
    """Names with commas between them, ``a,b``."""

    def __init__(self, text: str) -> None:
        super().__init__(one.strip() for one in text.split(",") if one.strip())
        if not self:
            raise typer.BadParameter("it is empty; give names with commas between them.")


class PoolNames(Names):
    """``local``, ``union`` or both."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        if unknown := [one for one in self if one not in ("local", "union")]:
            raise typer.BadParameter(f"{unknown[0]!r} is no pool; give local, union or local,union.")


class Numbers(list[int]):
    """Whole numbers with commas between them, ``4096,8192``."""

    def __init__(self, text: str) -> None:
        try:
            super().__init__(int(one) for one in text.split(","))
        except ValueError as error:
            raise typer.BadParameter(f"{text!r} is no list of whole numbers; write it like 4096,8192.") from error


class Devices(Names):
    """The names of devices, once a number was there and back."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        import torch

        for name in self:
            try:
                torch.zeros(1, device=name).cpu()
            except (AssertionError, ImportError, RuntimeError) as error:
                reason = str(error).splitlines()[0]
                told = f"{name!r} cannot be used here ({reason}); name another, such as cpu."
                raise typer.BadParameter(told) from error


class OneDevice(Devices):
    """The name of one device."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        if len(self) > 1:
            raise typer.BadParameter(f"{len(self)} devices are given, {text}; name one.")


def memory(text: str | int) -> int:
    """``8GB`` or ``512MiB`` as a number of bytes."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]?)(i?)B", str(text))
    if found is None:
        raise typer.BadParameter(f"{text!r} is no amount of memory; write it like 8GB or 512MiB.")
    return int(float(found[1]) * (1024 if found[3] else 1000) ** " KMGT".index(found[2] or " "))


Memory = Annotated[int, typer.Option(parser=memory, metavar="8GB", help="For the search.")]
Device = Annotated[
    Devices | None,
    typer.Option(parser=Devices, metavar="NAME,…", help="Such as cuda:0 or cuda:0,cuda:1 (default: the best)."),
]
SingleDevice = Annotated[
    OneDevice | None,
    typer.Option(parser=OneDevice, metavar="NAME", help="Such as cuda:0 (default: the best there is)."),
]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"] | None,
    typer.Option(help="Of the weights; auto: what the device multiplies fastest (default: as they are stored)."),
]
BatchTokens = Annotated[int | None, typer.Option(help="Tokens encoded at a time (default: what suits the device).")]
Seed = Annotated[int, typer.Option(help="Of what is drawn.")]
K = Annotated[int, typer.Option("-k", help="How many to show.")]
