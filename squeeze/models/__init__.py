"""A model in memory: loaded, and how to find one's way in it."""
