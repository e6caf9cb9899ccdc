"""Share weights: let several places of a model use the same ones, stored once."""
