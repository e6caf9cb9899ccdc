"""Cells -> records: what is measured with what, in which order; ``jobs/`` are the processes."""
