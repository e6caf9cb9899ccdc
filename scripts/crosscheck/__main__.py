"""Compare squeeze with other implementations: ``python -m scripts.crosscheck [WORDS]`` (`nox -s crosscheck`).

Every trial runs in a fresh process, one after the other; one that fails is a row that says why.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from scripts.crosscheck.comparisons import Trial, trials
from scripts.crosscheck.prepare import prepare
from scripts.crosscheck.table import collate

LIMIT = 1800  # seconds of one trial
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",  # everything is there: no library asks the hub
    "GPTQMODEL_CPU_WORKERS": "2",  # by default it starts none where it finds no accelerator
}


def attempt(trial: Trial, inputs: Path, results: Path, timed: bool = True) -> None:
    """Run a trial in a process of its own; its output goes to NAME.log, and if it fails its last line to NAME.json.

    timed: whether seconds are kept; they mean nothing where other jobs share the machine.
    """
    log = results / f"{trial.name}.log"
    command = [sys.executable, "-m", "scripts.crosscheck.trial", trial.name, str(inputs), str(results)]
    command += [] if timed else ["--untimed"]
    try:
        with log.open("wb") as output:
            subprocess.run(
                command, env={**os.environ, **ENVIRONMENT}, stdout=output, stderr=output, timeout=LIMIT, check=True
            )
    except subprocess.TimeoutExpired:
        error = f"took more than {LIMIT} s"
    except subprocess.CalledProcessError as failed:
        error = (log.read_text(errors="replace").strip().splitlines() or [f"ended with {failed.returncode}"])[-1]
    else:
        return
    (results / f"{trial.name}.json").write_text(json.dumps({"name": trial.name, "error": error[:200]}) + "\n")


def main() -> None:
    """Run the comparisons of which a trial's name holds all words given, all by default, and collate what there is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*", help="run only comparisons with these words in a trial's name, such as hqq")
    parser.add_argument("--inputs", type=Path, default=Path("results/crosscheck/inputs"))
    parser.add_argument("--results", type=Path, default=Path("results/crosscheck"))
    parser.add_argument("--untimed", action="store_true", help="keep no seconds: other jobs share this machine")
    options = parser.parse_args()
    options.results.mkdir(parents=True, exist_ok=True)
    prepare(options.inputs)
    for trial in trials(options.words).values():
        start = time.monotonic()
        print(f"{trial.name} ...", file=sys.stderr, end=" ", flush=True)
        attempt(trial, options.inputs, options.results, timed=not options.untimed)
        print(f"{time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    print(collate(options.results))


if __name__ == "__main__":
    main()
