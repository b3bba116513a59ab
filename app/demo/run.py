"""The demo from start to end."""

import signal
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.text import Text

from app.attestations.verify import VerificationError, read_keys, verify_archive
from app.client import ApiError, ClientError, Job, LetheClient
from app.commands.progress import follow
from app.demo import report
from app.demo.files import BASE_MODEL, DemoError, DemoFiles, find_files
from app.demo.measure import TOLERANCE, Target, largest_difference, measure_all
from app.demo.service import client_of, running_service
from app.embedded.process import EmbeddedError
from app.fetching import fetch

CONFLICT = 409
# Stricter than the default on what must be kept: the demo's margin is wide enough to show it.
POLICY = {"min_retain_probability_ratio": 0.93}
SEED = 7
PLAIN_WIDTH = 120


class Demo:
    """One run of the demo."""

    def __init__(self, data_dir: Path, console: Console, files: DemoFiles) -> None:
        self._data_dir = data_dir.absolute()
        self._console = console
        self._files = files
        self._times: dict[str, float] = {}
        self._adapter = f"support-bot-{datetime.now(UTC):%Y%m%dt%H%M%Sz}"

    @property
    def log_path(self) -> Path:
        """The service's output."""
        return self._data_dir / "up.log"

    @property
    def result_folder(self) -> Path:
        """Where the unlearned adapter is unpacked."""
        return self._data_dir / "result" / self._adapter

    @property
    def archive(self) -> Path:
        """The released archive as downloaded."""
        return self._data_dir / "result" / f"{self._adapter}.tar.gz"

    @property
    def report(self) -> Path:
        """The job's evaluation as a page."""
        return self._data_dir / "result" / f"{self._adapter}.html"

    @property
    def keys(self) -> Path:
        """The keys that attestations are verified with."""
        return self._data_dir / "result" / "keys.json"

    def run(self, *, keep: bool) -> None:
        """Everything; raises DemoError, ClientError or EmbeddedError where it does not hold."""
        self._data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._service(), client_of(self._data_dir) as client:
            with self._phase("register the base model and the adapter, upload the records"):
                body = self._prepare(client)
            job = self._unlearn(client, body)
            evaluation = client.evaluation(job.id)
            with self._phase("download adapter, report and keys, verify the attestation, unpack"):
                self._fetch(client, job)
                self._prove(client, job)
            self._verify(evaluation)
            if keep:
                self._hold()

    @contextmanager
    def _service(self) -> Iterator[None]:
        started = time.monotonic()
        self._say(f"starting Postgres, Redis, the API and two workers (log: {self.log_path})")
        with running_service(self._data_dir, self._files.root, self.log_path):
            self._times["start the service"] = time.monotonic() - started
            yield
            self._say("stopping the service")

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        self._say(name)
        started = time.monotonic()
        yield
        self._times[name] = time.monotonic() - started

    def _say(self, text: str) -> None:
        self._console.print(Text.assemble(("==> ", "bold"), text))

    def _prepare(self, client: LetheClient) -> dict[str, Any]:
        """Registers and uploads; the job's body."""
        self._register_base(client)
        client.register_adapter(self._adapter, BASE_MODEL, self._files.adapter)
        purposes = ("forget", "retain", "holdout")
        sets = {f"{name}_set": client.upload_dataset(self._files.records(name), name) for name in purposes}
        return {"adapter": self._adapter, **sets, "policy": POLICY, "seed": SEED}

    def _register_base(self, client: LetheClient) -> None:
        """Registers the base model, or makes sure that an earlier run registered this very one."""
        source = str(self._files.base.resolve())
        try:
            client.register_base_model(BASE_MODEL, source)
        except ApiError as error:
            if error.status != CONFLICT:
                raise
            if client.base_model(BASE_MODEL)["source"] != source:
                raise DemoError(f"{self._data_dir} belongs to another checkout; remove it") from error

    def _unlearn(self, client: LetheClient, body: dict[str, Any]) -> Job:
        """Submits the job and follows it; DemoError unless it succeeds and its gate passes."""
        job = client.submit(body)
        self._say(f"job {job.id}")
        with self._phase("unlearn, evaluate, pack and register"):
            job = follow(client, job.id, self._console)
        if job.status == "gate_failed":
            report.show_checks(self._console, client.evaluation(job.id)["gate"])
        if job.status != "succeeded" or job.verdict != "passed":
            reason = f": {job.error.message} [{job.error.code}]" if job.error else ""
            raise DemoError(f"the job ended as {job.status}{reason}")
        return job

    def _fetch(self, client: LetheClient, job: Job) -> None:
        fetch(client, f"/unlearn-jobs/{job.id}/adapter", self.archive)
        self.result_folder.mkdir(parents=True)
        with tarfile.open(self.archive, "r:gz") as archive:
            archive.extractall(self.result_folder, filter="data")

    def _prove(self, client: LetheClient, job: Job) -> None:
        """Saves report and keys, and checks the attestation as anybody could, offline."""
        client.save_report(job.id, self.report)
        client.save_keys(self.keys)
        try:
            with self.archive.open("rb") as archive:
                proof = verify_archive(archive, read_keys(self.keys))
        except VerificationError as error:
            raise DemoError(f"the attestation does not hold: {error}") from error
        self._say(proof.sentence())

    def _verify(self, evaluation: dict[str, Any]) -> None:
        """Measures again in fresh processes, shows everything, and compares with what the service says."""
        targets = (
            Target("source", self._files.adapter, reusable=True),
            Target("result", self.result_folder, reusable=False),
            Target("control", self._files.control, reusable=True),
            Target("base", None, reusable=True),
        )
        with self._phase("measure again outside the service, with a fresh PEFT load of the download"):
            measured = measure_all(targets, self._files, self._data_dir / "measured")
        report.show_answers(self._console, measured)
        report.show_metrics(self._console, measured)
        report.show_resurfacing(self._console, measured)
        report.show_checks(self._console, evaluation["gate"])
        inside = {f"inside the job: {name}": seconds for name, seconds in evaluation["durations"].items()}
        report.show_times(self._console, self._times | inside)
        report.show_place(self._console, self.archive, self.result_folder, self._files)
        report.show_proof(self._console, self.report, self.archive, self.keys)
        self._compare(largest_difference(evaluation, measured))

    def _compare(self, difference: float) -> None:
        if difference > TOLERANCE:
            raise DemoError(f"the service's numbers do not reproduce: they differ by {difference:.2g}")
        self._say(f"the service's numbers reproduce (largest difference {difference:.1g}) and the gate passed")

    def _hold(self) -> None:
        self._say(f"the service keeps running, see {self._data_dir / 'connection.json'}; stop with Ctrl-C")
        try:
            signal.pause()
        except KeyboardInterrupt:
            return


def run_demo(data_dir: Path, *, keep: bool) -> int:
    """Runs the demo; 0 only when the job succeeded, its gate passed and its numbers reproduce."""
    console = Console(highlight=False, width=None if Console().is_terminal else PLAIN_WIDTH)
    signal.signal(signal.SIGTERM, interrupt)
    started = time.monotonic()
    try:
        demo = Demo(data_dir, console, find_files())
        demo.run(keep=keep)
    except KeyboardInterrupt:
        console.print("interrupted; the service was stopped")
        return 1
    except (DemoError, ClientError, EmbeddedError) as error:
        console.print(f"The demo failed: {error}", style="bold red", markup=False, soft_wrap=True)
        console.print(f"The service's log: {data_dir.absolute() / 'up.log'}", soft_wrap=True)
        return 1
    console.print(f"Done in {time.monotonic() - started:.0f} s.")
    return 0


def interrupt(number: int, frame: FrameType | None) -> None:
    """SIGTERM ends the demo like Ctrl-C, so that the service is stopped."""
    del number, frame
    raise KeyboardInterrupt
