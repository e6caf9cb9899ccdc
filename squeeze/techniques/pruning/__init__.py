"""Weights that become zeros."""
