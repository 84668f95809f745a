"""Model presets: one small module per file, built from its spec and the data's description."""
