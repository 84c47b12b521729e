"""One run: its answers and scores."""
