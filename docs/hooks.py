"""While the documentation is built: the help of every verb, and references in docstrings as plain names."""

import re
from typing import Any

import typer

import umarvel_hf.cli.verbs  # noqa: F401  (registers them)
from umarvel_hf.cli.command import EXAMPLES, PROGRAM, application

MARK = "<!-- verbs -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs for every page."""
    return markdown.replace(MARK, _verbs()) if MARK in markdown else markdown


def on_page_content(html: str, **_: Any) -> str:
    """Called by mkdocs for every page: what Sphinx would link, ``:func:`umarvel_hf.encoding.encode```, is a name."""
    return re.sub(r":(?:attr|class|data|func|meth|mod):<code>~?(?:[\w.]+\.)?(\w+)</code>", r"<code>\1</code>", html)


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
        lines += [f"| `{_cell(option)}` | {_cell(what)} |" for option, what in options]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
