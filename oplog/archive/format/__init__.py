"""The bytes of an archive: every object's format, encoded and decoded without a database."""
