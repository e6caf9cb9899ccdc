"""Write the reference of the documentation from the code: commands, axes, columns. `nox -s docs` runs it."""

import argparse
from collections.abc import Iterator
from pathlib import Path

import click

from squeeze.boards.glossary import GROUPS, PARTS, Term
from squeeze.cli import app
from squeeze.core.paths import conf
from squeeze.request.axes import described
from squeeze.request.choices import GROUPS as CHOSEN
from squeeze.request.choices import SWEEP, Choices


def main() -> None:
    """Write commands.md, axes.md and columns.md into a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", nargs="?", type=Path, default=Path("docs/reference"), help="(default: %(default)s)")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for name, lines in (("commands", commands()), ("axes", axes()), ("columns", columns())):
        (out / f"{name}.md").write_text("\n".join(lines) + "\n")


def commands() -> Iterator[str]:
    """Yield a section for each command: its usage, what it does, its options."""
    yield from ("# Commands", "", str(app.help).partition("\n")[0], "")
    yield "Exit codes: 0; 1 where all that was measured failed, or something that was checked is wrong; 2 for a"
    yield "request that cannot be served; 75 where the environment failed and cells are left pending; 130 when"
    yield "interrupted."
    for name, command in sorted(app.commands.items()):
        context = click.Context(command, info_name=f"squeeze {name}")
        yield from ("", f"## squeeze {name}", "", "```text", *command.get_usage(context).splitlines(), "```", "")
        yield from (line.strip() for line in str(command.help).splitlines())
        options = [option for option in command.params if isinstance(option, click.Option)]
        if options:
            yield ""
            yield from table(("option", "meaning"), (_option(option, context) for option in options))


def _option(option: click.Option, context: click.Context) -> tuple[str, str]:
    names, meaning = option.get_help_record(context) or (option.name, "")
    return f"`{names}`", meaning


def axes() -> Iterator[str]:
    """Yield what can be swept, and what can be chosen."""
    yield from ("# Axes and choices", "", "Every axis can be swept: `bits=8,4,3`. One that a choice does not read ")
    yield from ("makes no second cell.", "")
    choices = Choices((conf(),))
    rows = (
        (f"`{name}`", f"`{default}`", allowed, words) for name, default, allowed, words in described(choices.scalars)
    )
    yield from table(("axis", "default", "allowed", "meaning"), rows)
    yield from ("", "Choices, one YAML each in `conf/`:", "")
    yield from table(
        ("choice", "names"),
        ((f"`{group}=`", ", ".join(f"`{name}`" for name in choices.names(group))) for group in (*CHOSEN, SWEEP)),
    )


def columns() -> Iterator[str]:
    """Yield the columns of leaderboard.csv, by what they are about."""
    yield from ("# Columns of leaderboard.csv", "")
    yield "Figures of batch sizes above 1 end in `_b8` and so on, those of a curve's prompts in `_at_512` and so on;"
    yield "`acc_TASK` is of each task, `acc_TASK_delta` its change."
    yield "A figure may have further columns, which begin with its name:"
    yield ""
    yield from table(("ending", "meaning"), ((f"`_{name}`", words) for name, words in PARTS.items()))
    for group, terms in GROUPS.items():
        yield from ("", f"## {group.capitalize()}", "")
        yield from table(("column", "meaning", "unit"), (_column(name, term) for name, term in terms.items()))


def _column(name: str, term: Term) -> tuple[str, str, str]:
    return f"`{name}`", term.words, term.unit


def table(headings: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> Iterator[str]:
    """Yield a Markdown table."""
    yield f"| {' | '.join(headings)} |"
    yield f"| {' | '.join('---' for _ in headings)} |"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"


if __name__ == "__main__":
    main()
