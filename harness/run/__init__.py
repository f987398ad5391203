"""From pending trials to rows in a store."""
