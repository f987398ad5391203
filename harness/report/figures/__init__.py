"""Figures: one file a family."""
