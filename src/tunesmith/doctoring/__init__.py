"""What doctor looks at: findings, what is known at once, and what is tried in processes of its own."""
