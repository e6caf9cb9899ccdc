"""Compare what a row costs with what other tools take for the same figures: ``python -m scripts.peers [OVERRIDES]``.

On one machine, one after the other: `squeeze run OVERRIDES`, with nothing of it in the cache but what is fetched; then,
for the uncompressed model and for each cell, lm-eval's command line for the same tasks and the same text, and a plain
script that times transformers' generate (scripts.peers.generate), in as many fresh processes as the protocol has
rounds. Both sides are charged with the baseline, and seconds a row are all seconds over the number of cells; peers get
the models as folders, whose making is not charged.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from scripts.peers.commands import Command, latency, quality, task_folder
from squeeze.artifacts import keys
from squeeze.boards.leaderboard import csv
from squeeze.core import cache
from squeeze.core.errors import SqueezeError
from squeeze.core.files import write_atomically
from squeeze.records.record import Status
from squeeze.records.store import RecordStore
from squeeze.request.cell import Cell
from squeeze.request.expand import cells as requested
from squeeze.sources import corpora, tasks, wheels

DEFAULT = ("technique=rtn", "bits=4", "protocol=smoke")
OURS = "squeeze"


def measure(overrides: Sequence[str], out: Path) -> pd.DataFrame:
    """Run both sides and return a line for each command: tool, model, processes, seconds; output goes to out/*.log.

    Raises SqueezeError where a command fails: a chain of which a part is missing costs nothing comparable.
    """
    cells = requested(list(overrides))
    task_files = prepare(cells[0], out)
    with cache.nothing_computed():
        environment = {**os.environ, cache.VARIABLE: str(cache.cache_root())}
        ours = (sys.executable, "-m", "squeeze.cli", "run", *overrides, "--results", str(out / "ours"))
        lines = [run(Command(OURS, "all", ours), out, environment)]
        whole = (Status.OK, Status.DIVERGED)
        failed = [record.reason for record in RecordStore(out / "ours").records() if record.status not in whole]
        if failed:
            raise SqueezeError(f"a row of squeeze failed, and took less than it would have: {failed[0]}")
        folders = {"uncompressed": out / "uncompressed", **save(cells, out)}
        for name, folder in folders.items():
            lines += [run(command, out, environment) for command in chain(name, folder, cells[0], task_files, out)]
    return pd.DataFrame(lines)


def prepare(cell: Cell, out: Path) -> Path:
    """Fetch all that is read, save the uncompressed model for the peers, and return the folder of their tasks."""
    from scripts.peers.folders import save_uncompressed

    if cell.protocol["tasks"]:
        wheels.wheel(*tasks.QUESTIONS)
    asked = cell.protocol["perplexity"]
    tokenizer = save_uncompressed(cell, out / "uncompressed").tokenizer
    text = tokenizer.decode(corpora.tokens(asked["corpus"], tokenizer, asked["tokens"]).tolist())
    return task_folder(cell.protocol, text, out / "task")


def save(cells: Iterable[Cell], out: Path) -> dict[str, Path]:
    """Save each cell's artifact, which our side has built, for the peers; return the folders by label."""
    from scripts.peers.folders import save_dense

    folders = {cell.label: out / cell.label for cell in cells}
    for cell in cells:
        save_dense(cell, keys.folder(keys.artifact_key(cell)), folders[cell.label])
    return folders


def chain(name: str, folder: Path, cell: Cell, task_files: Path, out: Path) -> list[Command]:
    """Return the commands by which peers take a row's figures of one model."""
    scored = quality(name, folder, cell.protocol, task_files, out / "lm-eval" / name)
    return [scored, *latency(name, folder, cell)]


def run(command: Command, out: Path, environment: dict[str, str]) -> dict[str, str | int | float]:
    """Run a command in its fresh processes and return its line of the table. Raises SqueezeError where it fails."""
    log = out / f"{command.tool}-{command.model}.log"
    print(f"{command.tool}, {command.model}: {command.times} x ...", file=sys.stderr, flush=True)
    started = time.monotonic()
    with log.open("ab") as output:
        for _ in range(command.times):
            ended = subprocess.run(command.line, env=environment, stdout=output, stderr=output, check=False)
            if ended.returncode:
                raise SqueezeError(f"{command.tool} of {command.model} ended with {ended.returncode}: {log}")
    seconds = round(time.monotonic() - started, 1)
    return {"tool": command.tool, "model": command.model, "processes": command.times, "seconds": seconds}


def report(lines: pd.DataFrame, cells: int) -> str:
    """Return the table of seconds, ours and theirs a row with their ratio, and a sentence."""
    ours = lines.loc[lines["tool"] == OURS, "seconds"].sum() / cells
    theirs = lines.loc[lines["tool"] != OURS, "seconds"].sum() / cells
    table = ["| tool | model | processes | seconds |", "| :-- | :-- | --: | --: |"]
    table += [f"| {row.tool} | {row.model} | {row.processes} | {row.seconds:.1f} |" for row in lines.itertuples()]
    sentence = (
        f"A row and its share of the baseline took squeeze {ours:.0f} s and lm-eval with a plain timing script "
        f"{theirs:.0f} s: {ours / theirs:.2f} of their time, over {cells} row{'s' if cells > 1 else ''}, measured once."
    )
    return "\n".join([*table, "", sentence]) + "\n"


def main() -> int:
    """Compare, and write peers.csv and peers.md. Returns 0, or 2 where something is wrong with what was asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("overrides", nargs="*", default=DEFAULT, help="cells, as of `squeeze run`: %(default)s")
    parser.add_argument("--items", type=int, help="questions of each task, instead of the protocol's")
    parser.add_argument("--tokens", type=int, help="tokens of text, instead of the protocol's")
    parser.add_argument("--rounds", type=int, help="fresh processes that time, instead of the protocol's")
    parser.add_argument("--out", type=Path, default=Path("results/peers"), help="a new folder (default: %(default)s)")
    options = parser.parse_args()
    fewer = {"items": options.items, "perplexity.tokens": options.tokens, "rounds": options.rounds}
    overrides = [*options.overrides, *(f"protocol.{name}={value}" for name, value in fewer.items() if value)]
    out = options.out.absolute()
    try:
        if out.exists():
            raise SqueezeError(f"{out} exists; name a new folder with --out")
        out.mkdir(parents=True)
        lines = measure(overrides, out)
        text = report(lines, len(requested(overrides)))
    except SqueezeError as error:
        print(f"peers: {error}", file=sys.stderr)
        return 2
    write_atomically(out / "peers.csv", csv(lines))
    write_atomically(out / "peers.md", text.encode())
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
