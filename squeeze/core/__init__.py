"""What knows nothing of models: errors, hashes, whole files, the cache, this machine."""
