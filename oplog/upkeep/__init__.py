"""Archives checked, repaired, collected and pinned; databases pruned."""
