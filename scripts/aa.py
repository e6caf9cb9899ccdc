"""Count the false alarms of an A/A sweep (`squeeze run sweep=aa`), as measured and resampled."""

import argparse
import sys
from pathlib import Path

from squeeze.audit.false_alarms import blocks, describe, resampled
from squeeze.core.errors import SqueezeError


def main() -> int:
    """Print what was found, and return the exit code: 0, or 2 when there is no A/A sweep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", nargs="?", type=Path, default=Path("results"), help="folder that holds records/")
    parser.add_argument("--resamples", type=int, default=200, help="sweeps to draw (default: %(default)s)")
    options = parser.parse_args()
    try:
        sweep = blocks(options.results)
        print("\n".join(describe(sweep, resampled(sweep, options.resamples))))
    except SqueezeError as error:
        print(f"aa: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
