"""Payloads of entries: the shapes of logged types, row effects, and their encoding."""
