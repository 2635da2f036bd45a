"""Snapshots: the tables' rows at one sequence, taken, published and read back."""
