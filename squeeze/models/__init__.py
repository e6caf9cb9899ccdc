"""Hold a model in memory: load it, and find its parts."""
