"""One recipe turns conversations into a fine-tuned open LLM, proven equal at every hand-over, served on a CPU."""

__version__ = "0.2.0"
