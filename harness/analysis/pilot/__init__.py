"""What a pilot's measurements say: predictions, learning, a verdict, what it is worth, and whether it still holds."""
