"""What COMMIT makes of images that nobody collected, as DDL.

The tally is in settings, which any session may set. Images are rows of the log, which a role that
writes no log cannot take away: so a table of the log asks for them, too.
"""

from __future__ import annotations

from oplog.schema.touched_keys import DEFINER, LOW_BITS, UNLOGGED

TELL_PROGRAM = """concat('by role ', session_user,
      ', application ' || nullif(current_setting('application_name'), ''),
      ', server process ', pg_backend_pid(), ', client ' || host(inet_client_addr()))"""
"""SQL for the program that a refusal is about: the server's log has the refusal as well."""
COLLECTED_TRIGGER = "oplog_image_collected"
"""The trigger that refuses the COMMIT of a transaction whose images nobody collected."""


def create_collected_statements(s: str) -> list[str]:
    """The trigger on the images in the quoted schema `s`, and its function."""
    return [
        _guard_image(s),
        f"""CREATE CONSTRAINT TRIGGER {COLLECTED_TRIGGER} AFTER INSERT ON {s}.oplog_image
  DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION {s}.oplog_guard_image()""",
        f"ALTER TABLE {s}.oplog_image ENABLE ALWAYS TRIGGER {COLLECTED_TRIGGER}",
    ]


def weigh_image(image: str) -> str:
    """The weight of an image's rows in SQL; `image` is an alias of `oplog_image`."""
    unit = f"({image}.relation::bigint & {LOW_BITS}) * 4"
    return (
        f"{image}.rows * (CASE {image}.operation WHEN 'I' THEN {unit} + 1 "
        f"WHEN 'U' THEN 2 * {unit} + 3 ELSE {unit} + 2 END)"
    )


def _guard_image(s: str) -> str:
    return f"""CREATE FUNCTION {s}.oplog_guard_image() RETURNS trigger
LANGUAGE plpgsql {DEFINER} AS $oplog_fn$
-- Runs at COMMIT. An image that is still there is a change that no entry and no mark tells,
-- whatever the session made of the settings that the other check goes by.
BEGIN
  -- By its place: an index would lead past all images that were collected.
  IF NOT EXISTS (SELECT FROM {s}.oplog_image i WHERE i.ctid = NEW.ctid) THEN RETURN NULL; END IF;
  RAISE EXCEPTION USING errcode = '{UNLOGGED}',
    message = concat('oplog: this transaction changes tracked rows and does not log them: ',
      NEW.relation::regclass),
    detail = {TELL_PROGRAM},
    hint = 'write through a session that is attached to the log, and leave settings of the log '
      'to it';
END $oplog_fn$"""
