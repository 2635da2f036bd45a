"""Benchmarks of the log's cost, as ratios measured side by side. Run with `make bench`."""
