"""Object stores: one small protocol, and its implementations.

A store never reports a write as done unless it certainly was.
"""
