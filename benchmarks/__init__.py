"""What the log costs: ratios, side by side in one run. Run with `make bench`."""
