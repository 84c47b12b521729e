"""A chatbot for a free Space of the Hub: VERB space."""
