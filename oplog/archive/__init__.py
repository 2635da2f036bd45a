"""The archive: the log, and snapshots of the tables, kept in an object store.

Knows no keys and decodes no payloads. Never imports capture or replay.
"""
