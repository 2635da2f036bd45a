"""Publishing: what is new in the database becomes segments and heads of an archive."""
