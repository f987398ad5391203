"""What the workers train: models and data sets."""
