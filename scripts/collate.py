"""Turn the records of a results folder into its leaderboards."""

import argparse
import sys
from pathlib import Path

from squeeze.boards.leaderboard import collate
from squeeze.core.errors import SqueezeError


def main() -> int:
    """Collate; returns the exit code: 0, or 2 when there is nothing to collate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", nargs="?", type=Path, default=Path("results"), help="folder that holds records/")
    parser.add_argument("--out", type=Path, help="folder of the leaderboards (default: the same)")
    options = parser.parse_args()
    try:
        collate(options.results, options.out or options.results)
    except SqueezeError as error:
        print(f"collate: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
