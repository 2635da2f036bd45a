"""What the probe concludes from stores that keep a condition, refuse it, or lie."""

from __future__ import annotations

from threading import Barrier

import pytest

from oplog.archive.objectstore.probe import RACERS, Verdict, probe_store
from oplog.archive.objectstore.protocol import ObjectStore
from oplog.errors import StorageConfigError, StoreUnavailableError
from tests.s3stub import Fault, S3Stub

pytestmark = pytest.mark.contract


def test_probe_of_a_store_that_overwrites(stub: S3Stub, remote: ObjectStore) -> None:
    stub.ignores_conditions = True
    assert probe_store(remote) is Verdict.LIES
    assert stub.objects == {}


def test_probe_of_a_store_that_says_no(stub: S3Stub, remote: ObjectStore) -> None:
    stub.refuses_conditions = True
    assert probe_store(remote) is Verdict.REFUSES
    assert stub.objects == {}


def test_probe_of_a_store_that_checks_and_then_writes(stub: S3Stub, remote: ObjectStore) -> None:
    gate = Barrier(RACERS)

    def meet(path: str) -> None:
        if path.endswith("-race"):
            gate.wait(30)

    stub.between = meet
    assert probe_store(remote) is Verdict.LIES


def test_probe_of_a_store_that_refuses_and_overwrites(stub: S3Stub, remote: ObjectStore) -> None:
    """The 412 is not the proof: the body is."""
    stub.ignores_conditions = True
    stub.plan(Fault(), method="PUT")
    stub.plan(Fault(412, "PreconditionFailed", performed=True), times=1000, method="PUT")
    assert probe_store(remote) is Verdict.LIES


def test_probe_whose_answers_are_lost(stub: S3Stub, remote: ObjectStore) -> None:
    stub.plan(Fault(performed=True, dropped=True), times=1, method="PUT", path="-once")
    stub.plan(Fault(500, "InternalError", performed=True), times=8, method="PUT", path="-race")
    assert probe_store(remote) is Verdict.ATOMIC


def test_probe_that_may_not_delete(stub: S3Stub, remote: ObjectStore) -> None:
    stub.plan(Fault(403, "AccessDenied"), times=1000, method="DELETE")
    assert probe_store(remote, nonce="n") is Verdict.ATOMIC
    assert set(stub.objects) == {"pre/fix/PROBE/n-once", "pre/fix/PROBE/n-race"}


def test_probe_without_permission_has_no_verdict(stub: S3Stub, remote: ObjectStore) -> None:
    stub.plan(Fault(403, "AccessDenied"), times=1000)
    with pytest.raises(StorageConfigError):
        probe_store(remote)


def test_probe_of_a_store_that_loses_what_it_refused(stub: S3Stub, remote: ObjectStore) -> None:
    stub.plan(Fault(412, "PreconditionFailed"), method="PUT")
    with pytest.raises(StoreUnavailableError, match="nothing is there"):
        probe_store(remote)
