"""The steps of the publishing protocol, by name.

The code that publishes, the events it reports and the model under tests/model use these names.
A step is one request, or one transaction, after which a process may die.
"""

from __future__ import annotations

from enum import StrEnum


class Step(StrEnum):
    """What a process is about to do. Between any two steps anything else may happen."""

    # Postgres
    ACQUIRE_LEASE = "acquire_lease"
    """Ask for the right to publish. It saves work; nothing is safe because of it."""
    TAKE_EPOCH = "take_epoch"
    """Raise the epoch in Postgres above the own row's and the newest head's."""
    READ_NEWS = "read_news"
    """Read, under one snapshot, the entries after the newest head's cursor."""
    COMPARE_LOG = "compare_log"
    """Look up in Postgres what the newest head says was published: was any of it lost?"""
    READ_STATE = "read_state"
    """Read the tables for a snapshot."""
    ACKNOWLEDGE = "acknowledge"
    """Say in Postgres what is published; refused when another worker has the epoch by now."""
    # The head
    READ_HINT = "read_hint"
    """Get LATEST. Behind, it costs requests; ahead of what there is, it stops its reader."""
    RESOLVE_HEAD = "resolve_head"
    """Get one head on the walk to the newest."""
    CHECK_PREDECESSOR = "check_predecessor"
    """Get the head before this one: without it, or with other bytes, this head does not count."""
    CREATE_HEAD = "create_head"
    """Create the next head if it is absent. This is the commit."""
    CONFIRM_HEAD = "confirm_head"
    """Get the head after a refused or unanswered create: whose is it?"""
    WRITE_HINT = "write_hint"
    """Put LATEST."""
    # What heads refer to
    PUT_SEGMENT = "put_segment"
    PUT_INDEX = "put_index"
    PUT_TYPES = "put_types"
    PUT_CHUNK = "put_chunk"
    PUT_MANIFEST = "put_manifest"
    PUT_PIN = "put_pin"
    """Put a copy of a head that garbage collection keeps as a root."""
    READ_OBJECT = "read_object"
    """Get an object that a head refers to."""
    # Garbage collection
    LIST_HEADS = "list_heads"
    LIST_PINS = "list_pins"
    LIST_GARBAGE = "list_garbage"
    """List one kind of name and choose what may go."""
    DELETE_BLOB = "delete_blob"
    DELETE_LOG = "delete_log"
    DELETE_INDEX = "delete_index"
    DELETE_MANIFEST = "delete_manifest"
    DELETE_HEAD = "delete_head"
    """Delete the oldest head, and no other before a read has shown it to be gone."""
    CONFIRM_DELETED = "confirm_deleted"
    """The read that shows it."""
    DELETE_PROBE = "delete_probe"
