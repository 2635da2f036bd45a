"""The log's tables, functions, triggers and rights, as DDL."""
