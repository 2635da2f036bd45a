"""What an error of a cloud store means: wait, look, have something mended, or give up.

Status and code are read from the text of the client's errors, which is the only place where they
are. The client reports every 409 as "already exists", but on S3 it means that nothing was
written and the request should be repeated.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum, auto

LONGEST_MESSAGE = 600

STATUS = re.compile(r"status code: (\d{3})")
CODE = re.compile(r"<Code>(\w+)</Code>")
TOLD = re.compile(r"<Message>([^<]*)</Message>")
# A signed URL is a credential, and messages are read by people who may not have it.
QUERY = re.compile(r"(?<=[\w/])\?[^\s,;\"]+")

BUSY_CODES = {
    "BadDigest",
    "ConditionalRequestConflict",
    "IncompleteBody",
    "InternalError",
    "OperationAborted",
    "RequestTimeout",
    "ServerBusy",
    "ServiceUnavailable",
    "SlowDown",
    "XAmzContentChecksumMismatch",
    "XAmzContentSHA256Mismatch",
}
CLOCK_CODES = {"RequestTimeTooSkewed", "RequestExpired", "RequestInTheFuture"}
ABSENT_PLACE_CODES = {"ContainerNotFound", "NoSuchBucket"}
LOCKED = re.compile(r"Lock|Retention|Immutable|Worm", re.IGNORECASE)
# Deep in the client's own error, which says of itself only "error sending request".
CERTIFICATE = re.compile(r"InvalidCertificate\(\s*(\w+)|invalid peer certificate: (\w+)")
# In place of a status: the bucket is elsewhere.
REDIRECTED = "redirect without LOCATION"
# Asked for credentials when nothing else gives any; it is there on machines of the cloud only.
METADATA_ADDRESSES = ("169.254.169.254", "169.254.170.2", "metadata.google")

CLOCK_HINT = "set this machine's clock: the store refuses requests signed at another time than its"
CREDENTIALS_HINT = (
    "set the credentials, region and endpoint in the environment (AWS_ACCESS_KEY_ID,"
    " AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION, AWS_ENDPOINT_URL) or in `options`;"
    " profiles in ~/.aws are not read"
)
CERTIFICATE_HINT = (
    "for a private CA set AWS_CA_BUNDLE, or the option ca_bundle, to a file with its certificate;"
    " see that the endpoint's name is in the server's certificate, and this machine's clock"
)
PLACE_HINT = "create it, or correct the URL"
ALLOW_HINT = (
    "see the permissions of these credentials, and that region and endpoint are the bucket's"
)
LOCKED_HINT = "the store keeps what is there until its retention ends"
WAIT_HINT = "see the network and the store's own state"


class Meaning(Enum):
    """What to do about an answer."""

    BUSY = auto()
    """Ask again: nothing is known about whether the request was carried out."""
    ABSENT = auto()
    """There is no such object."""
    REFUSED = auto()
    """The condition did not hold, by the answer at least: look."""
    LOCKED = auto()
    """What is there may not be overwritten or deleted yet."""
    UNSUPPORTED = auto()
    """The store does not do this at all."""
    MISCONFIGURED = auto()
    """Settings or permissions are wrong: repeating does not help."""


CODES = (
    (CLOCK_CODES, Meaning.MISCONFIGURED, CLOCK_HINT),
    (ABSENT_PLACE_CODES, Meaning.MISCONFIGURED, PLACE_HINT),
    (BUSY_CODES, Meaning.BUSY, WAIT_HINT),
)


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer, read: its meaning, a line for people without credentials in it, and advice."""

    meaning: Meaning
    message: str
    hint: str


def read_refusal(text: str, *, named: Meaning | None) -> Refusal:
    """Read the text of a client's error; `named` is what the client's own class of it says."""
    status = int(found[1]) if (found := STATUS.search(text)) else None
    code = found[1] if (found := CODE.search(text)) else ""
    message = _tell(status, code, text)
    meaning, hint = _weigh(status, code, named=named)
    if found := CERTIFICATE.search(text):
        # At once: the network is as it should be, and no other attempt ends otherwise.
        meaning, hint = Meaning.MISCONFIGURED, CERTIFICATE_HINT
        message = f"the server's certificate is not trusted ({found[1] or found[2]}): {message}"
    if REDIRECTED in text:
        meaning, hint = Meaning.MISCONFIGURED, CREDENTIALS_HINT
    if any(address in text for address in METADATA_ADDRESSES):
        hint = CREDENTIALS_HINT
        message = f"no credentials were found: {message}"
    return Refusal(meaning, message, hint)


def _tell(status: int | None, code: str, text: str) -> str:
    if code:
        told = found[1] if (found := TOLD.search(text)) else ""
        text = f"{status} {code}: {told}"
    return QUERY.sub("?…", text.partition("\n\nDebug source")[0])[:LONGEST_MESSAGE]


def _weigh(status: int | None, code: str, *, named: Meaning | None) -> tuple[Meaning, str]:
    """The code first, as the most exact; then the client's class; then the status."""
    for codes, meaning, hint in CODES:
        if code in codes:
            return meaning, hint
    if LOCKED.search(code):
        return Meaning.LOCKED, LOCKED_HINT
    if named is Meaning.MISCONFIGURED or status in {401, 403}:
        return Meaning.MISCONFIGURED, _advise_on_access(code)
    return (named, "") if named is not None else _weigh_status(status, code)


def _weigh_status(status: int | None, code: str) -> tuple[Meaning, str]:
    match status:
        case 404:
            return Meaning.ABSENT, ""
        case 409 | 412:
            return Meaning.REFUSED, ""
        case 501:
            return Meaning.UNSUPPORTED, ""
        case 408 | 425 | 429 | None:
            return Meaning.BUSY, WAIT_HINT
        case _ if status >= 500:  # noqa: PLR2004 - the server's own errors, by the standard
            return Meaning.BUSY, WAIT_HINT
    return Meaning.MISCONFIGURED, _advise_on_access(code)


def _advise_on_access(code: str) -> str:
    return ALLOW_HINT if code in {"", "AccessDenied"} else CREDENTIALS_HINT
