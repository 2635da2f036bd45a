"""The log outside Postgres: published as objects, checked there, and read back.

Holds formats, protocol and workers. Must not know keys or what payloads mean: entries are
carried as the sealed bytes that they are. The hard part is that a head never names what is
not there, whoever crashes, races or wakes up late.
"""
