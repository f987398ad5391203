"""What the trials say: pure functions of frames. Nothing here draws, or writes pages."""
