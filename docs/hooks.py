"""While the documentation is built: the help of every verb, and references in docstrings as plain names."""

import html
import re
from typing import Any

import typer

import umarvel_hf.cli.verbs  # noqa: F401  (registers them)
from umarvel_hf.cli.command import EXAMPLES, PROGRAM, application

MARK = "<!-- verbs -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs for every page."""
    return markdown.replace(MARK, _verbs()) if MARK in markdown else markdown


def on_page_content(content: str, **_: Any) -> str:
    """Called by mkdocs for every page: docstrings point at what Sphinx would link, and at notes that are not published.

    ``:func:`umarvel_hf.encoding.encode``` becomes a name, and ``(recipe.md §1.4)`` is left out.
    """
    content = re.sub(
        r":(?:attr|class|data|func|meth|mod):<code>~?(?:[\w.]+\.)?(\w+)</code>", r"<code>\1</code>", content
    )
    content = re.sub(r"\s*\((?:recipe\.md\s+)?§[^)]*\)", "", content)
    return re.sub(r"recipe\.md\s+§[\d.]*\d", "The reference implementation", content)


def _verbs() -> str:
    group: Any = typer.main.get_command(application)
    parts = []
    for name, command in group.commands.items():
        context = command.make_context(f"{PROGRAM} {name}", [], resilient_parsing=True)
        usage = command.get_usage(context).partition(" ")[2].strip()
        options = [row for one in command.params if (row := one.get_help_record(context))]
        told = command.help.strip()
        lines = [f"## {name}", "", told, "", "```bash", EXAMPLES[name], "```", "", f"`{usage}`", ""]
        lines += ["| option | what |", "| --- | --- |"]
        lines += [f"| <code>{_cell(option)}</code> | {_cell(what)} |" for option, what in options]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _cell(text: str) -> str:
    return html.escape(" ".join(text.split()), quote=False).replace("|", "&#124;")
