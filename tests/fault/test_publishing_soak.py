"""The short form of the soak of publishing: every fault once, under load, with real programs."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.fault.publishing_soak import FAULTS, run

pytestmark = [pytest.mark.postgres, pytest.mark.fault]


@pytest.mark.skipif(find_spec("ministack") is None, reason="the S3 server is not installed")
def test_whatever_befalls_publishing_the_archive_is_the_log(tmp_path: Path) -> None:
    wrong, done = run(tmp_path, minutes=0, seed=1)
    assert wrong == []
    assert all(done[fault] == 1 for fault in FAULTS)
    assert done["transactions"] > 0
