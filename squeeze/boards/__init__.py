"""Turn records into what people read."""
