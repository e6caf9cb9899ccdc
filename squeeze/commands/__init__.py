"""Hold the commands of the command line, each of which imports what it needs when it runs."""
