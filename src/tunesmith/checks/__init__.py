"""What verify looks at: what was written, and what is computed anew. Nothing here writes in a run folder."""
