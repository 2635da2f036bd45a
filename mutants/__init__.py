"""Mutation testing: break one thing in a module, and see whether its fast tests notice."""
