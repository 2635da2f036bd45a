"""The log outside the database: segments, heads and snapshots in an object store.

Sealed entries are copied as they are, without keys. At every instant all that a head names is
there and whole, whichever other processes are at work and however their requests end.
"""
