"""Makes the opposite of logged transactions happen, as a new transaction that is logged.

`selected_records` finds what is to be undone, `touched_history` reads what became of its rows,
`row_timeline` decides (pure) what each row has to be and who has changed it since, `undo_plan`
and `told_rows` are what people and machines see of that, `plan_making` puts it together, `live_rows` compares it with the tables, `write_order` puts
the writes in an order that constraints allow (pure), `row_writes` makes them.
"""
