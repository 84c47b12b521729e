"""Text in, clean conversations out. No torch."""
