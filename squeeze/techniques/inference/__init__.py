"""Compress what a model keeps while it generates, and leave its weights alone."""
