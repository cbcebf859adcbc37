"""Explainers, one file each: from what is seen of a feature to an explanation in words."""
