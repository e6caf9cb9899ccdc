"""Define what knows nothing of models: errors, hashes, whole files, the cache, this machine."""
