"""Build, key, save, load and export the compressed model as a folder."""
