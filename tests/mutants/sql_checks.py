"""Changes of what the append function refuses, in `oplog.schema.append_checks`."""

from __future__ import annotations

from tests.mutants.sql_change import Change

CHANGES = (
    # Arguments that are no arrays.
    Change("a record has no id", "p_record IS NULL OR ", ""),
    Change("a record has no key id", "p_key_id IS NULL OR ", ""),
    Change("a record has no data", "p_data IS NULL OR ", ""),
    Change("nothing is said of durability", " OR p_asynchronous IS NULL", ""),
    Change("a record has no format", "p_format IS NULL OR p_format NOT", "p_format NOT"),
    Change("any format is appended", "p_format NOT IN ({known})", "false"),
    Change(
        "marks are of no known format",
        "{FORMAT_SEALED}, {FORMAT_PLAIN}, {FORMAT_MARK}",
        "{FORMAT_SEALED}, {FORMAT_PLAIN}",
    ),
    Change(
        "a sealed record has no key id",
        "(p_format = {FORMAT_SEALED}) <> (p_key_id <> '')",
        "p_format <> {FORMAT_SEALED} AND p_key_id <> ''",
    ),
    Change(
        "what is not sealed has a key id",
        "(p_format = {FORMAT_SEALED}) <> (p_key_id <> '')",
        "p_format = {FORMAT_SEALED} AND p_key_id = ''",
    ),
    Change(
        "any length of key ids", "pg_catalog.octet_length(p_key_id) > {MAX_KEY_ID_BYTES}", "false"
    ),
    Change("the longest key id is refused", "> {MAX_KEY_ID_BYTES}", ">= {MAX_KEY_ID_BYTES}"),
    Change(
        "an idempotency key is empty",
        "NOT BETWEEN 1 AND {MAX_IDEMPOTENCY_KEY_BYTES}",
        "NOT BETWEEN 0 AND {MAX_IDEMPOTENCY_KEY_BYTES}",
    ),
    Change(
        "any length of idempotency keys",
        "NOT BETWEEN 1 AND {MAX_IDEMPOTENCY_KEY_BYTES}",
        "< 1",
    ),
    Change(
        "the longest idempotency key is refused",
        "NOT BETWEEN 1 AND {MAX_IDEMPOTENCY_KEY_BYTES}",
        "NOT BETWEEN 1 AND {MAX_IDEMPOTENCY_KEY_BYTES - 1}",
    ),
    Change(
        "letters of idempotency keys are counted",
        "pg_catalog.octet_length(p_idempotency_key)",
        "pg_catalog.char_length(p_idempotency_key)",
    ),
    # Arrays.
    Change("there are no names at all", "coalesce(v_count, 0) = 0", "v_count = 0"),
    Change("a record needs no aggregates", "coalesce(v_count, 0) = 0", "v_count IS NULL"),
    Change(
        "arrays of names have any form",
        "OR pg_catalog.array_ndims(p_aggregates) <> 1 "
        '"\n                "OR pg_catalog.array_lower(p_aggregates, 1) <> 1',
        "",
    ),
    Change("expectations may be missing", "pg_catalog.cardinality(p_expected) <> v_count", "false"),
    Change("expectations are a square", "OR pg_catalog.array_ndims(p_expected) <> 1 ", ""),
    Change("expectations begin anywhere", "OR pg_catalog.array_lower(p_expected, 1) <> 1", ""),
    Change("any number of aggregates", "v_count > {MAX_AGGREGATES} OR ", ""),
    Change("any size of all names", ")) > {MAX_NAMES_BYTES}", ")) < 0"),
    Change("only names have a size", "v_count * {_NAME_BYTES} + ", ""),
    # Parts.
    Change("parts and places come alone", "(p_firsts IS NULL) <> (p_more IS NULL)", "false"),
    Change(
        "any size of the first part",
        "pg_catalog.octet_length(p_data) > {MAX_STORED_PART_BYTES}",
        "false",
    ),
    Change(
        "more places than parts",
        'f"pg_catalog.cardinality(p_firsts) <> {beside}",',
        "",
    ),
    Change(
        "no further parts in an array",
        "{beside} NOT BETWEEN 1 AND",
        "{beside} NOT BETWEEN 0 AND",
    ),
    Change("any number of parts", "AND {MAX_STORED_PARTS - 1}", "AND {2 * MAX_STORED_PARTS}"),
    Change("one part too many", "AND {MAX_STORED_PARTS - 1}", "AND {MAX_STORED_PARTS}"),
    Change(
        "arrays of parts have any form",
        """            "pg_catalog.array_ndims(p_more) <> 1",
            "pg_catalog.array_ndims(p_firsts) <> 1",
            "pg_catalog.array_lower(p_more, 1) <> 1",
            "pg_catalog.array_lower(p_firsts, 1) <> 1",
""",
        "",
    ),
    Change("a place is missing", "p_firsts[n] IS NULL OR ", ""),
    Change("a part is missing", "p_more[n] IS NULL OR ", ""),
    Change("parts in any order", "(CASE WHEN n = 1 THEN 0 ELSE p_firsts[n - 1] END)", "0"),
    Change("a part before the first aggregate", "THEN 0 ELSE", "THEN -1 ELSE"),
    Change("no second part of the first aggregate", "THEN 0 ELSE", "THEN 1 ELSE"),
    Change("no second part of any other", "p_firsts[n - 1] END", "p_firsts[n - 1] + 1 END"),
    Change("a part after the last aggregate", "AND v_count - 1", "AND v_count"),
    Change("no part at the last aggregate", "AND v_count - 1", "AND v_count - 2"),
    Change(
        "any size of further parts",
        "pg_catalog.octet_length(p_more[n]) > {MAX_STORED_PART_BYTES}",
        "false",
    ),
    Change(
        "the first part has no size", "v_size := pg_catalog.octet_length(p_data);", "v_size := 0;"
    ),
    Change(
        "further parts have no size",
        "v_size := v_size + pg_catalog.octet_length(p_more[n]);",
        "",
    ),
    Change("any size of all parts", "v_size > {MAX_STORED_RECORD_BYTES}", "false"),
    # Metadata.
    Change("no pairs in an array", "v_texts NOT BETWEEN 2 AND", "v_texts NOT BETWEEN 0 AND"),
    Change("any number of pairs", "{2 * MAX_METADATA_VALUES}", "{4 * MAX_METADATA_VALUES}"),
    Change(
        "as many pairs as may be are refused",
        "{2 * MAX_METADATA_VALUES}",
        "{2 * MAX_METADATA_VALUES - 2}",
    ),
    Change("half a pair", "(v_texts & 1) <> 0", "false"),
    Change(
        "arrays of metadata have any form",
        """            "pg_catalog.array_ndims(p_metadata) <> 1",
            "pg_catalog.array_lower(p_metadata, 1) <> 1",
""",
        "",
    ),
    Change("a text is missing", "p_metadata[n] IS NULL OR ", ""),
    Change("a key is empty", "1 AND {MAX_METADATA_KEY_BYTES}", "0 AND {MAX_METADATA_KEY_BYTES}"),
    Change(
        "a key is as long as a value",
        "1 AND {MAX_METADATA_KEY_BYTES}",
        "1 AND {MAX_METADATA_VALUE_BYTES}",
    ),
    Change(
        "the longest key is refused",
        "1 AND {MAX_METADATA_KEY_BYTES}",
        "1 AND {MAX_METADATA_KEY_BYTES - 1}",
    ),
    Change(
        "an empty value is refused",
        "0 AND {MAX_METADATA_VALUE_BYTES}",
        "1 AND {MAX_METADATA_VALUE_BYTES}",
    ),
    Change(
        "a longer value",
        "0 AND {MAX_METADATA_VALUE_BYTES}",
        "0 AND {2 * MAX_METADATA_VALUE_BYTES}",
    ),
    Change(
        "the longest value is refused",
        "0 AND {MAX_METADATA_VALUE_BYTES}",
        "0 AND {MAX_METADATA_VALUE_BYTES - 1}",
    ),
    Change("values are keys", "(n & 1) = 1", "(n & 1) = 0"),
    Change(
        "letters of metadata are counted",
        "pg_catalog.octet_length(p_metadata[n])",
        "pg_catalog.char_length(p_metadata[n])",
    ),
    Change("only the first pair is checked", "FOR n IN 1 .. v_texts LOOP", "FOR n IN 1 .. 2 LOOP"),
    # Names.
    Change("any order of aggregates", 'v_name <= v_last COLLATE "C" OR ', ""),
    Change("an aggregate is there twice", "v_name <= v_last", "v_name < v_last"),
    Change(
        "sorted by the database's own rules",
        'v_last COLLATE "C"',
        'v_last COLLATE "und-x-icu"',
    ),
    Change("a name is missing", " OR v_name IS NULL THEN", " THEN"),
    Change(
        "the last aggregate is not checked",
        "FOR n IN 1 .. v_count LOOP",
        "FOR n IN 1 .. v_count - 1 LOOP",
    ),
    Change("a name is compared with none", "v_last := v_name;", "v_last := NULL;"),
    Change(
        "a name is empty",
        "NOT BETWEEN 1 AND {MAX_AGGREGATE_BYTES}",
        "NOT BETWEEN 0 AND {MAX_AGGREGATE_BYTES}",
    ),
    Change(
        "a longer name",
        "NOT BETWEEN 1 AND {MAX_AGGREGATE_BYTES}",
        "NOT BETWEEN 1 AND {2 * MAX_AGGREGATE_BYTES}",
    ),
    Change(
        "the longest name is refused",
        "NOT BETWEEN 1 AND {MAX_AGGREGATE_BYTES}",
        "NOT BETWEEN 1 AND {MAX_AGGREGATE_BYTES - 1}",
    ),
    Change(
        "letters of names are counted",
        "pg_catalog.octet_length(v_name)",
        "pg_catalog.char_length(v_name)",
    ),
    # Aggregates that are reserved.
    Change(
        "adoptions are not reserved",
        "pg_catalog.starts_with(v_name, '{ADOPTION_PREFIX}') OR ",
        "",
    ),
    Change("aggregates of marks are not reserved", " OR v_name IN ({kept})", ""),
    Change(
        "only the last aggregate is reserved",
        "v_last := v_name;",
        "v_last := v_name;\n    IF n < v_count THEN v_reserved := NULL; END IF;",
    ),
    Change("nothing is reserved", ", _refuse_reserved()]", "]"),
    Change(
        "the owner adopts nothing",
        "pg_catalog.pg_has_role(session_user, current_user, 'MEMBER')",
        "false",
    ),
    Change(
        "everybody adopts",
        "pg_catalog.pg_has_role(session_user, current_user, 'MEMBER')",
        "true",
    ),
    Change(
        "the function itself is asked whether it is the owner",
        "pg_has_role(session_user, current_user",
        "pg_has_role(current_user, current_user",
    ),
    Change(
        "the owner appends where readers look for marks",
        """IF v_reserved IN ({", ".join(f"'{name}'" for name in _KEPT_FOR_MARKS)})\n    OR """,
        "IF ",
    ),
    Change(
        "a row's name may not begin so",
        "WHERE p_metadata[n] IN ('{ADOPTED}', '{RETIRED}', '{SCHEMA_CHANGE}')",
        "WHERE true",
    ),
    Change("everybody says what is adopted", "IN ('{ADOPTED}', ", "IN ("),
    Change("everybody ends a type", "'{RETIRED}', '{SCHEMA_CHANGE}'", "'{SCHEMA_CHANGE}'"),
    Change("everybody says where a table has changed", ", '{SCHEMA_CHANGE}'", ""),
    Change(
        "only the first pair tells an adoption",
        "generate_series(1, v_texts, 2)",
        "generate_series(1, 1, 2)",
    ),
    Change(
        "a value tells an adoption",
        "generate_series(1, v_texts, 2)",
        "generate_series(1, v_texts, 1)",
    ),
    # Marks.
    Change("anybody appends marks", ", _refuse_marks()", ""),
    Change("every mark is refused", "(v_count <> 1 OR p_data", "(true OR p_data"),
    Change("a mark has more aggregates", "(v_count <> 1 OR p_data", "(p_data"),
    Change("a mark has data", "p_data <> ''::bytea\n      OR p_more", "p_more"),
    Change("a mark has parts", "OR p_more IS NOT NULL OR NOT", "OR NOT"),
    Change(
        "a mark at any aggregate",
        " OR NOT pg_catalog.starts_with(v_last, '{REQUEST_PREFIX}'))",
        ")",
    ),
    # Keys.
    Change("any key seals", "_refuse_key(s), ", ""),
    Change("a retired key seals", " AND k.retired_at IS NULL", ""),
    Change("an old snapshot hides a retirement", "{valid} FOR SHARE;", "{valid};"),
    Change(
        "every snapshot is a statement's",
        "IF pg_catalog.current_setting('transaction_isolation') = 'read committed' THEN",
        "IF true THEN",
    ),
    Change(
        "an unknown key was retired",
        "IF EXISTS (SELECT FROM {s}.oplog_key k",
        "IF true OR EXISTS (SELECT FROM {s}.oplog_key k",
    ),
    Change(
        "a retired key is unknown",
        "IF EXISTS (SELECT FROM {s}.oplog_key k",
        "IF false AND EXISTS (SELECT FROM {s}.oplog_key k",
    ),
    Change("an unknown key seals", "WHEN serialization_failure THEN", "WHEN others THEN"),
    Change(
        "a key that is newer than the snapshot is unknown",
        "WHEN serialization_failure THEN",
        "WHEN unique_violation THEN",
    ),
    Change(
        "what has no key is asked for one", "IF p_format = {FORMAT_SEALED} THEN", "IF true THEN"
    ),
    # Durability.
    Change("durability is not asked for", "[*checks, _refuse_asynchronous()]", "checks"),
    Change("asynchronous commit is always refused", "NOT p_asynchronous", "true"),
    Change("asynchronous commit is never refused", "NOT p_asynchronous", "false"),
    Change("only the opposite is refused", "= 'off' THEN", "<> 'off' THEN"),
)
