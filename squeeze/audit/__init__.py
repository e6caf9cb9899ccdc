"""Check whether the records are what they say: verify them, recompute them, measure them again."""
