"""Are the records what they say? Verified, recomputed, measured again."""
