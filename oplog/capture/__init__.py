"""What an application's transaction did to rows, and the entry that says so.

`plan` reads a statement, `recorder` keeps what it did through savepoints, `effect` folds it
to one effect per row, `readback` asks the database what it stored, `writer` seals and
appends, `listener` ties all that to SQLAlchemy's events.
"""
