"""Hold the metric ``accuracy``."""
