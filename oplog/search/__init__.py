"""Which changes set a column to a value: newest first, in pages, by index or by a bounded scan."""
