"""One small application for each framework: how it says who wrote a record, and why.

All of them keep notes. Each is run by its test in `tests/examples`.
"""
