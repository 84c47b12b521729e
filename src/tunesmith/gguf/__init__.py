"""GGUF files: which families, in, out, and quantised; needs neither torch nor transformers."""
