"""What a recipe will do to its data, known before anything is done."""
