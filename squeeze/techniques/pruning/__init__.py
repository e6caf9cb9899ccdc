"""Prune models: set weights to zero."""
