"""Plant slow-downs in live sweeps, and count how often the leaderboard finds them, and how often it finds one too many.

A sweep times, in one block, a row for each slow-down (the model with blocks that compute and add nothing, see
scripts/slowed) and honest replicates of the uncompressed model. Verdicts are those of the board. Sweeps that were
measured already, below --results, are counted and not measured again.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from squeeze.boards.table import table
from squeeze.core import environment
from squeeze.core.errors import SqueezeError
from squeeze.core.files import write_atomically
from squeeze.records.answers import SPEED
from squeeze.records.record import Record, Status
from squeeze.records.store import RecordStore

PLUGIN = Path(__file__).parent / "slowed"
SPEEDUP = "decode_speedup"
SLOWER, FASTER = SPEED.lower, SPEED.higher
# Of quality and prefill as little as a record can have: what counts here is decoding.
BRIEF = (
    *("protocol=smoke", "protocol.tasks=[]", "protocol.perplexity.tokens=1024"),
    *("protocol.latency.prompt_tokens=32", "protocol.latency.prefill_repeats=2"),
)
TECHNIQUE = "name: {name}\nfamily: slowed\nsteps:\n- _target_: slowed:blocks.MoreBlocks\n  share: {share}\n"
SWEEP = "common: model={model} dtype={dtype}\ngrids:\n- technique={slowed}\n- technique=none replicate=range(1,{end})\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print what was found and write it as JSON; return 0, or 2 when a sweep cannot be measured or judged."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("overrides", nargs="*", help=f"of the request: {' '.join(BRIEF)} unless given")
    parser.add_argument("--sweeps", type=int, default=10, help="(default: %(default)s)")
    parser.add_argument("--slowdown", type=float, nargs="+", default=[0.10, 0.20], help="shares (default: 0.1 0.2)")
    parser.add_argument("--honest", type=int, default=2, help="replicates in each sweep (default: %(default)s)")
    parser.add_argument("--model", default="smollm2_135m", help="(default: %(default)s)")
    parser.add_argument("--dtype", default="bfloat16", help="the faster one here (default: %(default)s)")
    parser.add_argument("--results", type=Path, default=Path("results/planted"), help="(default: %(default)s)")
    parser.add_argument("--out", type=Path, help="JSON file (default: planted.json below --results)")
    options = parser.parse_args(arguments)
    folders = [options.results / f"sweep_{number:02}" for number in range(options.sweeps)]
    try:
        with tempfile.TemporaryDirectory() as site:
            install(Path(site))
            choices(Path(site), options.slowdown, options.honest, options.model, options.dtype)
            for folder in folders:
                measure(Path(site), folder, options.overrides)
        found = summary([verdicts(list(RecordStore(folder).require()), options.dtype) for folder in folders])
    except SqueezeError as error:
        print(f"planted: {error}", file=sys.stderr)
        return 2
    found["machine"] = environment.hardware()["cpu_model"]
    found["commit"] = environment.code()["commit"]
    write_atomically(options.out or options.results / "planted.json", json.dumps(found, indent=1).encode())
    print("\n".join(words(found)))
    return 0


def install(site: Path) -> None:
    """Lay the plugin ``slowed`` out in a folder of the import path to be, as an installed distribution."""
    shutil.copytree(PLUGIN, site / "slowed", ignore=shutil.ignore_patterns("__pycache__"))
    info = site / "squeeze_slowed-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: squeeze-slowed\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[squeeze.plugins]\nslowed = slowed\n")


def choices(folder: Path, slowdowns: Iterable[float], honest: int, model: str, dtype: str) -> None:
    """Write the choices of techniques and the sweep "planted"."""
    (folder / "technique").mkdir()
    (folder / "sweep").mkdir()
    names = {f"slowed_{round(1000 * share)}": share for share in slowdowns}
    for name, share in names.items():
        (folder / "technique" / f"{name}.yaml").write_text(TECHNIQUE.format(name=name, share=share))
    sweep = SWEEP.format(model=model, dtype=dtype, slowed=",".join(names), end=1 + honest)
    (folder / "sweep" / "planted.yaml").write_text(sweep)


def measure(site: Path, results: Path, overrides: Sequence[str]) -> None:
    """Measure one sweep. Raises SqueezeError unless it ends well."""
    settings = {one.partition("=")[0]: one for one in (*BRIEF, *overrides)}  # a later one stands for an earlier one
    command = [sys.executable, "-m", "squeeze.cli", "run", "sweep=planted", *settings.values()]
    places = os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH"))))
    made = subprocess.run(
        [*command, "--results", str(results), "--config-dir", str(site)],
        env={**os.environ, "PYTHONPATH": places},
        check=False,
    )
    if made.returncode:
        raise SqueezeError(
            f"the sweep in {results} ended with code {made.returncode}; the same command goes on with it"
        )


def verdicts(records: Sequence[Record], dtype: str) -> list[dict[str, Any]]:
    """Return a sweep's rows: planted (the share of added work, 0 for honest rows), speedup, low, high, verdict.

    Raises SqueezeError for a row that failed, or that was timed against another dtype, which a slow-down is none of.
    """
    planted = {record.attempt: round(record.claimed.get("added_work", 0.0), 3) for record in records}
    board = table(records)
    failed = board[board["status"] != Status.OK]
    if len(failed):
        raise SqueezeError(f"{failed['label'].iloc[0]} has no figures: {failed['reason'].iloc[0]}")
    others = set(board["speed_baseline"]) - {dtype}
    if others:
        raise SqueezeError(f"{others.pop()} is faster here than {dtype}; give that one as --dtype")
    return [
        {
            "planted": planted[row["attempt"]],
            "speedup": row[SPEEDUP],
            "low": row[f"{SPEEDUP}_low"],
            "high": row[f"{SPEEDUP}_high"],
            "verdict": row[f"{SPEEDUP}_verdict"],
        }
        for row in board.to_dict("records")
    ]


def summary(sweeps: Sequence[Sequence[dict[str, Any]]]) -> dict[str, Any]:
    """Count, of the rows of all sweeps: the slow-downs that were found, and the honest rows called different."""
    rows = [row for sweep in sweeps for row in sweep]
    planted = {share: [row for row in rows if row["planted"] == share] for share in {row["planted"] for row in rows}}
    honest = planted.pop(0.0, [])
    found = {
        f"{share:.3f}": {
            "found": sum(row["verdict"] == SLOWER for row in same),
            "called_faster": sum(row["verdict"] == FASTER for row in same),
            **_figures(same),
        }
        for share, same in sorted(planted.items())
    }
    alarms = sum(row["verdict"] in (SLOWER, FASTER) for row in honest)
    return {"sweeps": len(sweeps), "planted": found, "honest": {"called_different": alarms, **_figures(honest)}}


def words(found: dict[str, Any]) -> Iterator[str]:
    """Say in words what a summary holds."""
    for share, rows in found["planted"].items():
        yield f"{float(share):.1%} more work: found in {rows['found']} of {rows['rows']} rows, {_speedups(rows)}"
    honest = found["honest"]
    yield f"honest replicates: {honest['called_different']} of {honest['rows']} called different, {_speedups(honest)}"


def _figures(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    halves = [(math.log(row["high"]) - math.log(row["low"])) / 2 for row in rows]
    return {"rows": len(rows), "speedups": [row["speedup"] for row in rows], "half_widths": halves}


def _speedups(rows: dict[str, Any]) -> str:
    if not rows["rows"]:
        return "none measured"
    low, high, widest = min(rows["speedups"]), max(rows["speedups"]), max(rows["half_widths"])
    return f"speed-ups of {low:.3f} to {high:.3f}, half-width at most {widest:.1%}"


if __name__ == "__main__":
    sys.exit(main())
