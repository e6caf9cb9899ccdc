"""Share weights: several places of a model use one tensor, which is stored once."""
