"""Scorers, one file each: how well an explanation predicts held-out examples."""
