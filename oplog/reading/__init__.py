"""Entries read in order: verified, opened, subscribed to, as the history of a row."""
