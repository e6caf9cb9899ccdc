"""What is kept of an attempt, and the statistics behind it."""
