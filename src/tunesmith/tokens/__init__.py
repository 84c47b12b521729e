"""Conversations in, token rows out."""
