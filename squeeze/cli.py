"""Run the command ``squeeze``. Each command imports what it needs when it runs, so that ``--help`` answers at once."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

from squeeze import __version__
from squeeze.commands import build, check, export, measure, read, show
from squeeze.core.errors import PENDING, SqueezeError, TransientError

USAGE, INTERRUPTED = 2, 130
COMMANDS = (
    *(measure.run, measure.resume, build.build, measure.list_cells, measure.show_axes),
    *(read.board, show.show, read.collate, read.compare, read.pick),
    *(check.verify, check.rerun, check.kld, export.export),
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="squeeze")
def app() -> None:
    """Compress language models, measure what was gained and lost, and rank the results.

    OVERRIDES choose and sweep in Hydra's grammar: technique=rtn,magnitude bits=8,4,3 protocol=smoke, or sweep=smoke.

    A first look, in a minute: squeeze run model=tiny technique=none,rtn bits=8,4,2 protocol=smoke
    """


for command in COMMANDS:
    app.add_command(command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit code.

    0; 1 where all that was measured failed, or something that was checked is wrong; 2 for a request that cannot be
    served; 75 when the environment failed and cells stay pending; 130 when interrupted.
    """
    try:
        return int(app.main(arguments, prog_name="squeeze", standalone_mode=False) or 0)
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message())
        return USAGE
    except click.ClickException as error:
        return _fail(error.format_message())
    except TransientError as error:
        return _fail(str(error), PENDING)
    except SqueezeError as error:
        return _fail(str(error))
    except BrokenPipeError:  # the reader of `squeeze list | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _fail(str(error))
    except (KeyboardInterrupt, click.Abort):
        print("interrupted: every record written so far is kept; `squeeze resume` measures the rest", file=sys.stderr)
        return INTERRUPTED


def _fail(message: str, code: int = USAGE) -> int:
    from squeeze.records.sanitize import line

    print(f"error: {line(message)}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
