"""Where models, texts and questions come from: a pinned name -> verified files."""
