"""Records of a source, in order: from files or from the Hugging Face hub."""
