"""Execute an artifact, token by token; `contract.py` says what a runtime must provide to those who measure it."""
