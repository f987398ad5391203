"""From pending trials to rows in a store."""

from pathlib import Path

RESULTS = Path("results")
"""Folder of runs that are given no folder of their own."""
