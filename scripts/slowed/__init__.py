"""Offer a technique that makes a model slower; scripts/planted.py installs it for its sweeps alone."""
