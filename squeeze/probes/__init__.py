"""An artifact -> samples: what one measuring process sees."""
