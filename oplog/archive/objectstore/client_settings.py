"""Settings of the client of a cloud store: options over environment, certificates, time limits."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from oplog.errors import ConfigurationError

CONNECT_SECONDS = 5.0
LONGEST_READ_SECONDS = 3600.0
"""For one object, as long as bytes keep coming."""

# Of the options, those that are about the connection; the rest are the store's own.
_CLIENT_OPTIONS = {
    "allow_http",
    "allow_invalid_certificates",
    "proxy_ca_certificate",
    "proxy_excludes",
    "proxy_url",
    "root_certificate",
    "user_agent",
}
_CA_OPTION = "ca_bundle"
_CA_VARIABLE = "AWS_CA_BUNDLE"
_FLAGS = {"true": True, "1": True, "false": False, "0": False}
_BEGIN = "-----BEGIN CERTIFICATE-----"


class ClientSettings:
    """What the client is made with: `own` settings of the store, and those of its connections."""

    def __init__(
        self, scheme: str, options: Mapping[str, str], environment: Mapping[str, str]
    ) -> None:
        """Raises `ConfigurationError` for a file of certificates that cannot be read."""
        self._client: dict[str, Any] = {}
        self.own: dict[str, Any] = {}
        for name, value in options.items():
            if name == _CA_OPTION:
                continue
            known = self._client if name in _CLIENT_OPTIONS else self.own
            known[name] = _FLAGS.get(value.lower(), value) if name.startswith("allow_") else value
        self._trust_bundle(scheme, options, environment)
        if _find_endpoint(options, environment).startswith("http://"):
            # An `http://` in the URL is meant; obstore alone would call it a "builder error".
            self._client.setdefault("allow_http", True)
        if scheme == "s3":
            self.own.setdefault("checksum_algorithm", "SHA256")
            # Bulk deletion answers 200 whatever became of the objects.
            self.own.setdefault("disable_bulk_delete", True)
            if not self.own["checksum_algorithm"]:
                del self.own["checksum_algorithm"]

    def _trust_bundle(
        self, scheme: str, options: Mapping[str, str], environment: Mapping[str, str]
    ) -> None:
        """Trust a private CA, as other clients of S3 do: it is named by a file."""
        path, said = options.get(_CA_OPTION, ""), f"the option {_CA_OPTION}"
        if not path and scheme == "s3":
            path, said = environment.get(_CA_VARIABLE, ""), _CA_VARIABLE
        if not path or "root_certificate" in self._client:
            return
        try:
            text = Path(path).read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise ConfigurationError(
                f"{said} names {path}, which cannot be read: {error.strerror}",
                hint="give the path of a file with the certificates of your CA, in PEM",
            ) from error
        if _BEGIN not in text:
            raise ConfigurationError(
                f"{said} names {path}, and there is no certificate in it",
                hint="give a file with the certificates of your CA, in PEM",
            )
        self._client["root_certificate"] = text

    def limit_request(self, seconds: float) -> dict[str, Any]:
        """Settings of a connection whose requests end within `seconds`, body and all."""
        return {
            "timeout": timedelta(seconds=seconds),
            "connect_timeout": timedelta(seconds=min(CONNECT_SECONDS, seconds)),
            **self._client,
        }

    def limit_silence(self, seconds: float) -> dict[str, Any]:
        """Settings of a connection on which nothing may come for no more than `seconds`."""
        return {
            **self.limit_request(max(LONGEST_READ_SECONDS, seconds)),
            "connect_timeout": timedelta(seconds=min(CONNECT_SECONDS, seconds)),
            "read_timeout": timedelta(seconds=seconds),
        }


def _find_endpoint(options: Mapping[str, str], environment: Mapping[str, str]) -> str:
    for name in ("aws_endpoint_url_s3", "endpoint", "endpoint_url", "aws_endpoint"):
        if found := options.get(name):
            return found
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"):
        if found := environment.get(name):
            return found
    return ""
