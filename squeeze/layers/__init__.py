"""How compressed weights are stored and multiplied; ``contract.py`` says what a layer owes."""
