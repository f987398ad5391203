"""Claims of papers: what they say, what must be run for them, and what became of them."""
