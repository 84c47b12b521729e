"""A GGUF on the CPU, without torch."""
