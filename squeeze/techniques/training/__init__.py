"""Weights that are trained."""
