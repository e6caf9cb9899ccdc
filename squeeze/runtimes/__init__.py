"""What executes an artifact, token by token; `contract.py` says what a runtime owes to those who measure it."""
