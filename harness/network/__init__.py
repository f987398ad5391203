"""The emulated network: what it is, how it is shaped, and what it measures."""
