"""Implement the compression techniques, one paper a file, by family; ``contract.py`` defines their interface."""
