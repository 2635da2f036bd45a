"""A revision written into an application's Alembic environment, without running the environment."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

from alembic import util
from alembic.config import Config
from alembic.script import ScriptDirectory

from oplog.errors import ConfigurationError

_MESSAGE = "operation log"


@dataclass(frozen=True, slots=True)
class Environment:
    """An Alembic environment: its `env.py`, and the revision that has a log already, if any."""

    env: Path
    has_log: Path | None
    _scripts: ScriptDirectory

    def write_revision(self, *, upgrade: str, downgrade: str) -> Path:
        """Write a revision after the newest one; the bodies are Python source."""
        script = self._scripts.generate_revision(
            util.rev_id(), _MESSAGE, head="head", upgrades=upgrade, downgrades=downgrade
        )
        if script is None:
            raise ConfigurationError(
                "Alembic wrote no revision", hint="look at the script.py.mako of the environment"
            )
        return Path(script.path)


def open_environment(configuration: Path) -> Environment:
    """The environment of an `alembic.ini`.

    Raises `ConfigurationError` where there is none, and for revisions with several heads.
    """
    try:
        # Standard output is for the answer of the command that asks.
        quiet = Namespace(quiet=True)
        scripts = ScriptDirectory.from_config(Config(str(configuration), cmd_opts=quiet))
        revisions = [Path(one.path) for one in scripts.walk_revisions()]
    except (util.CommandError, OSError, SyntaxError) as cause:
        raise ConfigurationError(
            f"{configuration} leads to no Alembic environment: {cause}",
            hint="run alembic init first, or give the right file with --alembic",
        ) from cause
    if len(scripts.get_heads()) > 1:
        raise ConfigurationError(
            f"the revisions of {configuration} have several heads",
            hint="merge them first (alembic merge heads), then run this again",
        )
    has_log = next(
        (one for one in revisions if "create_oplog" in one.read_text(encoding="utf-8")), None
    )
    return Environment(Path(scripts.dir) / "env.py", has_log, scripts)
