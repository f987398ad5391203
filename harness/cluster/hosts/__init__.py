"""One process on each machine of a real cluster, started by a scheduler: rank 0 leads, the others are its agents."""
