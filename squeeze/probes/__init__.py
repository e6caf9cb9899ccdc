"""Take samples of an artifact: what one measuring process sees."""
