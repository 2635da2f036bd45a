"""Tables as they were at one moment, and what changed between two."""
