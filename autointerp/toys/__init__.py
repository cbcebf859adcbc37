"""Toys with ground truth: planted dictionaries, small worlds, and how much of them an SAE recovered."""
