"""Hold metric modules for Hugging Face's ``evaluate``, which loads each from its folder here: no hub is asked."""
