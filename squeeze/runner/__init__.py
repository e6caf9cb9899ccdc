"""Measure cells into records: decide what is measured with what, in which order; ``jobs/`` are the processes."""
