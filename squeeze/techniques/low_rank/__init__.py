"""Factorise models: write matrices as products of thinner ones."""
