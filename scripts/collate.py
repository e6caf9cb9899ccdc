"""Turn the records of a results folder into its leaderboards, as `squeeze collate` does."""

import sys

from squeeze.cli import main

if __name__ == "__main__":
    sys.exit(main(["collate", *sys.argv[1:]]))
