"""Quantize models: store weights and activations in fewer bits."""
