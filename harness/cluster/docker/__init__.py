"""A cluster of containers."""
