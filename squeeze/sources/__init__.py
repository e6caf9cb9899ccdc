"""Bring models, texts and questions: a pinned name -> verified files."""
