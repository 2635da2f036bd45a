"""Capture: what an application's transaction does to rows, written to the log with its COMMIT.

While statements run, `attachment` and `listener` receive SQLAlchemy's events, `planning` and
`statement_plan` decide what a statement does to a tracked table, `statement` and `observation`
turn its execution into row changes, and `recorder` keeps them by savepoint.

At COMMIT `transaction` takes three steps, which `writer` offers. `gathering` asks the database
for what is not known yet, with the help of `merge` and `readback`. `building` makes the record,
without a connection. `sending` appends it. The values in between are those of `record` and
`draft`; `net_row` and `grouping` are the rules by which changes become effects by aggregate.

`claiming`, `request` and `retry` are for idempotency keys, locks and repeated runs.
"""
