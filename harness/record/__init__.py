"""What is kept of trials."""
