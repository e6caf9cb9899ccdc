"""Keep what is known of an attempt, and compute the statistics behind it."""
