"""Keys, sealing and hashes."""
