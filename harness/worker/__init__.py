"""One rank: process group, DDP, a communication hook, and what it measures of itself."""
