"""Why no head is the newest one: heads are missing, or are older than what was there before."""

from __future__ import annotations

from oplog.archive.format.path import LATEST, name_head
from oplog.errors import (
    ArchiveError,
    HeadRolledBackError,
    ManifestInvalidError,
    SignedForkError,
)


def refuse_older(url: str, *, found: int, seen: int) -> HeadRolledBackError:
    """The error for a newest head that is older than what the same reader saw."""
    return HeadRolledBackError(
        f"the newest head of {url} is {found}, and head {seen} was there before",
        hint="heads were deleted, or an older copy of the bucket was put in its place: "
        "bring the newer objects back before anything is published",
    )


def refuse_hinted(url: str, *, found: int, named: int) -> HeadRolledBackError:
    """The error for a newest head that is older than what `LATEST` names."""
    return HeadRolledBackError(
        describe_older(url, found=found, named=named),
        hint="newer heads were deleted, or LATEST was altered: look at the store, and "
        "bring the newer objects back; to go on without what they held, say "
        "--accept-older, or open_archive(..., accept_older=True)",
    )


def refuse_missing(url: str, *, found: int) -> ArchiveError:
    """The error for heads that do not count: what must be before them is not there."""
    if found == 0:
        return ManifestInvalidError(
            f"{url} was an archive, and shows no head",
            hint="heads were deleted by hand or by a lifecycle rule, or the store's list "
            "leaves out what is there: bring the last two heads back. If they are gone, and "
            "the database has everything, oplog resync --anew begins again",
        )
    if found == 1:
        return ManifestInvalidError(
            f"{name_head(1)} is in {url} again after it was collected",
            hint="newer heads were deleted by hand or by a lifecycle rule: bring the last two "
            "back; only oplog's own garbage collection may delete here",
        )
    return ManifestInvalidError(
        f"the head before {name_head(found)} is missing from {url}",
        hint="heads were deleted by hand or by a lifecycle rule: bring the last two back; "
        "only oplog's own garbage collection may delete here",
    )


def refuse_forked(url: str, one: bytes, other: bytes, *, number: int) -> SignedForkError:
    """The error for two heads of one number, or of one place, that are both believed."""
    return SignedForkError(
        f"there are two heads {number} of {url}, both signed by a publisher that is trusted, or a "
        "head that was built on one that is not there",
        hint="two publishers use the key, or it was stolen: keep both (the error has the bytes, "
        "and the bucket its versions), see which of them the database has published (oplog check "
        "with the database), then rotate the key",
        heads=(one, other),
    )


def describe_older(url: str, *, found: int, named: int) -> str:
    """What to say of a hint that names a newer head than was found."""
    newest = f"the newest that can be read is head {found}" if found else "there is no head"
    return f"{LATEST} in {url} names head {named}, and {newest}"
