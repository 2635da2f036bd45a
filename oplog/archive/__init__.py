"""The log outside the database: segments, heads and snapshots in an object store.

Copies sealed entries as they are; knows no key and decodes no payload. Must not know how
entries were captured or are replayed. The hard thing is never to lie: at every instant all
that a head names is there and whole, whoever else is at work, and however their requests end.
"""
