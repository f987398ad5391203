"""What the trials say: pure functions of frames. Nothing here draws, or writes pages."""

MAX_SLOWDOWN = 0.10
"""The share by which a method may be slower than in a reference, where nobody says another one."""
