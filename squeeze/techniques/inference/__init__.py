"""What changes while a model generates, its weights left alone."""
