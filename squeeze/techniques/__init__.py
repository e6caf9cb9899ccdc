"""Compression techniques, one paper a file, and the layers in which they store what they made."""
