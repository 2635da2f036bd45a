"""Makes the opposite of logged transactions happen, as a new transaction that is logged.

`selected_records` finds what is to be undone, `touched_history` reads what became of its rows,
`row_timeline` decides (pure) what each row has to be and who has changed it since. `live_rows`
compares that with the tables, and `plan_making` puts it together; `undo_plan` and `told_rows` are
what people and machines see of it. `write_order` puts the writes in an order that constraints
allow (pure), and `row_writes` makes them.
"""
