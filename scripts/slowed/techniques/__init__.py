"""Hold the folder of techniques, as plugins lay it out."""
