"""Artifacts of packed layers in the formats of other software."""
