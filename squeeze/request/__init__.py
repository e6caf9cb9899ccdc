"""What is asked: overrides and conf/ -> cells, checked, frozen, hashed."""
