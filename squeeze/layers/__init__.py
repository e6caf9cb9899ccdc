"""Store compressed weights and multiply with them; ``contract.py`` says what a layer must provide."""
