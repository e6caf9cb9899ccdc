"""One paper a file, by family; ``contract.py`` says what a technique gets and owes."""
