"""Keys, encryption of entries, and their hashes."""
