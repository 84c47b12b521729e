"""What must be equal, and how equal it was: every proof of the product."""
