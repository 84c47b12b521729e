"""Model files on disk, read and written without torch: where a base comes from, and one tensor at a time."""
