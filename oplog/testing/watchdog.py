"""The process that owns an embedded PostgreSQL server: makes, runs, kills and removes it.

`oplog.testing.server` runs this file as a script, once per server, with the standard library
only. It reads one JSON document per line from standard input, first the job, then commands, and
answers each with one line. It watches both the pipe and the owner's process: a process that the
owner forked may keep the pipe open. It becomes the parent of the server's orphaned children, so
that killed ones are reaped.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

try:
    import pwd
except ModuleNotFoundError:  # No POSIX system: nothing is started there.
    pwd = None  # type: ignore[assignment]

STOP_SECONDS = 10.0
START_SECONDS = 60.0
# A Unix socket's path has at most 103 bytes on macOS, 107 on Linux; the file adds 14.
LONGEST_DIRECTORY = 80
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
# prctl reads five arguments, whatever the option is.
PRCTL_UNUSED = (0, 0, 0)


class JobError(Exception):
    """A request failed; the text is sent to the owner."""


class Cluster:
    """One data directory and the server that runs on it, if any."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.account = _choose_account()
        self.settings: dict[str, str] = job["settings"]
        self.follows: str | None = job.get("follows")
        self.directory = _make_directory(self.account)
        self.process: subprocess.Popen[bytes] | None = None
        self.killed = False
        try:
            self.bin = _reachable_binaries(Path(job["bin"]), self.directory, self.account)
            self._initialise()
        except BaseException:
            shutil.rmtree(self.directory, ignore_errors=True)
            raise

    @property
    def data(self) -> Path:
        """The server's data directory."""
        return self.directory / "data"

    @property
    def pid(self) -> int:
        """Process id of the server, 0 when it does not run."""
        return self.process.pid if self.process is not None else 0

    def start(self) -> None:
        """Start the server and wait until it accepts connections."""
        command = [str(self.bin / "postgres"), "-D", str(self.data)]
        for name, value in self.settings.items():
            command += ["-c", f"{name}={value}"]
        command += ["-k", str(self.directory), "-h", ""]
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - this process has no threads
                **self._surroundings(),
            )
        self._wait_until_ready(self.process)
        self.killed = False

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End the server: `SIGINT` finishes its work on disk, `SIGQUIT` does not."""
        process = self.process
        if process is None:
            return
        for number in (how, signal.SIGQUIT):
            process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                # A negative status: another signal killed it, so it did not clean up.
                self.killed = process.wait(STOP_SECONDS) < 0
                self.process = None
                return
        self.kill()

    def kill(self) -> None:
        """End the server and all its children as a power failure would.

        The postmaster is stopped first: otherwise it would notice that a child died, and
        tell the others to quit.
        """
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGSTOP)
            os.waitpid(self.process.pid, os.WUNTRACED)
            _kill_descendants(self.process.pid)
            self.process.kill()
            self.process.wait()
        self.process = None
        self.killed = True
        _reap_children()

    def remove(self) -> None:
        """End the server and delete everything it has, shared memory included."""
        try:
            self.stop(signal.SIGQUIT)
            if self.killed:
                # Segments of shared memory that the killed server left are only removed by a
                # new server on the same directory.
                self.start()
                self.stop(signal.SIGQUIT)
        finally:
            _kill_descendants(os.getpid())
            _reap_children()
            shutil.rmtree(self.directory, ignore_errors=True)

    def _initialise(self) -> None:
        program = "initdb" if self.follows is None else "pg_basebackup"
        command = [str(self.bin / program), "-D", str(self.data), "-U", "postgres", "--no-sync"]
        if self.follows is None:
            command += ["-A", "trust", "-E", "UTF8", "--locale=C", "--no-instructions"]
        else:
            # -R writes the primary's address and the file standby.signal.
            command += ["-h", self.follows, "-R", "-X", "stream", "-c", "fast"]
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
            **self._surroundings(),
        )
        if done.returncode != 0:
            said = done.stdout.decode(errors="replace").strip()
            raise JobError(f"{program} ended with {done.returncode}: {said}")

    def _surroundings(self) -> dict[str, Any]:
        """Return how both programs run: no terminal, not the owner's environment, not root."""
        account = self.account
        privileges: dict[str, Any] = (
            {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []} if account else {}
        )
        return {
            "stdin": subprocess.DEVNULL,
            "env": {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
            "cwd": "/",
            "start_new_session": True,
            **privileges,
        }

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        """Wait for the word "ready" that the server writes into its lock file."""
        lock = self.data / "postmaster.pid"
        for _ in range(int(START_SECONDS / 0.01)):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.01)
                self.process = None
                raise JobError(f"the server ended with {process.returncode}: {self._last_words()}")
            with contextlib.suppress(FileNotFoundError):
                lines = lock.read_text().splitlines()
                # The file of a killed predecessor says "ready" too, with another process id.
                if lines[:1] == [str(process.pid)] and lines[7:8] == ["ready   "]:
                    return
        self.kill()
        raise JobError(f"not ready after {START_SECONDS:.0f} s: {self._last_words()}")

    def _last_words(self) -> str:
        lines = (self.directory / "log").read_text(errors="replace").splitlines()
        return "\n".join(lines[-15:])


# -- accounts and directories -------------------------------------------------------------------


def _choose_account() -> pwd.struct_passwd | None:
    """Return the server's account; None is the current one. PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise JobError("PostgreSQL does not run as root, and there is no account postgres or nobody")


def _make_directory(account: pwd.struct_passwd | None) -> Path:
    for place in (tempfile.gettempdir(), "/tmp", "/var/tmp"):  # noqa: S108 - mkdtemp below
        short = len(os.fsencode(place)) <= LONGEST_DIRECTORY - len("/oplog-pg-12345678")
        if short and os.access(place, os.W_OK) and _may_enter(Path(place), account):
            directory = Path(tempfile.mkdtemp(prefix="oplog-pg-", dir=place))
            if account is not None:
                os.chown(directory, account.pw_uid, account.pw_gid)
            return directory
    raise JobError("no temporary directory is writable, enterable for the server and short enough")


def _may_enter(path: Path, account: pwd.struct_passwd | None) -> bool:
    if account is None:
        return True
    for step in (path.resolve(), *path.resolve().parents):
        status = step.stat()
        owned = status.st_uid == account.pw_uid and status.st_mode & stat.S_IXUSR
        if not (owned or status.st_mode & stat.S_IXOTH):
            return False
    return True


def _reachable_binaries(bin_dir: Path, directory: Path, account: pwd.struct_passwd | None) -> Path:
    """Return a directory of programs that the account can enter.

    The server is copied if the account cannot enter its directory (below root's home, for
    example); the permissions of parent directories are not changed.
    """
    if _may_enter(bin_dir, account):
        return bin_dir
    install = bin_dir.parent
    package = install.parent
    copy = directory / "server"
    # The programs search for libraries three directories up, beside the wheel's package, so
    # the copy keeps that layout.
    shutil.copytree(
        install,
        copy / package.name / install.name,
        symlinks=True,
        ignore=shutil.ignore_patterns("include", "*.a", "pgxs"),
    )
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, copy / libraries.name, symlinks=True)
    for root, _, _ in os.walk(copy):
        Path(root).chmod(0o755)
    return copy / package.name / install.name / bin_dir.name


# -- processes ----------------------------------------------------------------------------------


def _die_with_parent() -> None:
    """Called in the child before it runs: the server ends if the watchdog itself is killed."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGQUIT)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, *PRCTL_UNUSED)


def _kill_descendants(pid: int) -> None:
    parents = dict(_processes())
    doomed = {pid}
    # A parent may be listed after its children: repeat until no more are found.
    while more := {child for child, parent in parents.items() if parent in doomed} - doomed:
        doomed |= more
    for child in doomed - {pid}:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


def _processes() -> Iterator[tuple[int, int]]:
    """Yield the ids of every process and its parent."""
    if not Path("/proc/self/stat").exists():
        listed = subprocess.run(
            ["/bin/ps", "-A", "-o", "pid=,ppid="], stdout=subprocess.PIPE, check=True, text=True
        )
        for line in listed.stdout.splitlines():
            child, parent = line.split()
            yield int(child), int(parent)
        return
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                # The name in parentheses may contain spaces; the parent is the second field
                # after it.
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                yield int(entry.name), int(fields[1])


def _reap_children() -> None:
    """Wait for all children, adopted ones too: a zombie would block the next start."""
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)


# -- conversation with the owner ----------------------------------------------------------------


def _requests(owner: int) -> Iterator[dict[str, Any]]:
    """Yield the owner's requests until it closes the pipe or ends."""
    watched = [sys.stdin.fileno()]
    if hasattr(os, "pidfd_open"):
        with contextlib.suppress(OSError):  # an old kernel, or an owner that is gone already
            watched.append(os.pidfd_open(owner))
    pending = b""
    while os.getppid() == owner:
        ready = select.select(watched, [], [])[0]
        if watched[0] not in ready:
            return
        received = os.read(watched[0], 65536)
        if not received:
            return
        *lines, pending = (pending + received).split(b"\n")
        for line in lines:
            yield json.loads(line)


def _answer(**values: object) -> None:
    with contextlib.suppress(BrokenPipeError):  # the owner is gone; the next read reports it
        os.write(sys.stdout.fileno(), json.dumps(values).encode() + b"\n")


def _serve(cluster: Cluster, requests: Iterator[dict[str, Any]]) -> None:
    _answer(directory=str(cluster.directory), pid=cluster.pid)
    for request in requests:
        try:
            match request["do"]:
                case "kill":
                    cluster.kill()
                case "restart":
                    cluster.stop()
                    cluster.start()
                case "stop":
                    return
            _answer(directory=str(cluster.directory), pid=cluster.pid)
        except (JobError, OSError) as error:
            _answer(error=str(error))


def _main() -> None:
    # Ctrl-C on a terminal is handled by the owner; SIGTERM must still clean up.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    requests = _requests(int(sys.argv[1]))
    job = next(requests, None)
    if job is None:
        return
    try:
        cluster = Cluster(job)
    except (JobError, OSError) as error:
        _answer(error=str(error))
        return
    failure = ""
    try:
        cluster.start()
        _serve(cluster, requests)
    except (JobError, OSError) as error:
        failure = str(error)
    finally:
        cluster.remove()
        _answer(error=failure) if failure else _answer(directory="", pid=0)


if __name__ == "__main__":
    _main()
