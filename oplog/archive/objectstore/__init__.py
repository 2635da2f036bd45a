"""Where objects are kept: one small protocol, and the stores that keep it.

Holds bytes under paths, nothing else. Must not know what the bytes mean, nor Postgres. The
hard part is honesty about writes: what was not certainly done is never reported as done.
"""
