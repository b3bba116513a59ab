"""The service's HTTP client for the command line: what it sends, what it checks, how it fails.

ClientError
├── UnreachableError       no answer at all
├── ApiError               an answer that says no (problem+json)
└── DamagedDownloadError   bytes that are not what the service announced
"""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
from pydantic import BaseModel, ConfigDict

TIMEOUT = httpx.Timeout(60.0, connect=10.0)
# The service reads a whole chain before it answers; a million entries take one to two minutes.
VERIFY_TIMEOUT = httpx.Timeout(1800.0, connect=10.0)
RECORDS = "application/jsonl"
REPORT = "text/html"


class ClientError(Exception):
    """A request did not do what it should; the text is for the person at the terminal."""


class UnreachableError(ClientError):
    """Nothing answered at the address."""


class DamagedDownloadError(ClientError):
    """The downloaded bytes do not have the announced digest."""


class FieldError(BaseModel):
    """One entry of a problem's `errors`."""

    pointer: str = ""
    detail: str = ""


class Problem(BaseModel):
    """A problem+json body (RFC 9457) as the service writes it."""

    title: str = ""
    detail: str | None = None
    code: str | None = None
    request_id: str | None = None
    errors: list[FieldError] = []


class ApiError(ClientError):
    """The service answered with an error."""

    def __init__(self, status: int, problem: Problem) -> None:
        super().__init__(status, problem)
        self.status = status
        self.problem = problem

    @classmethod
    def from_response(cls, response: httpx.Response) -> Self:
        """Reads the problem; a body of another kind (a proxy's page) is not repeated."""
        media_type = response.headers.get("content-type", "").partition(";")[0]
        if media_type == "application/problem+json":
            return cls(response.status_code, Problem.model_validate_json(response.content))
        return cls(response.status_code, Problem(title=response.reason_phrase))

    def __str__(self) -> str:
        problem = self.problem
        code = f" [{problem.code}]" if problem.code else ""
        lines = [f"{self.status} {problem.detail or problem.title}{code}"]
        lines += [f"  {error.pointer}: {error.detail}" for error in problem.errors]
        if problem.request_id:
            lines.append(f"  request id: {problem.request_id}")
        return "\n".join(lines)


class Progress(BaseModel):
    """How far a job is."""

    step: int = 0
    total_steps: int | None = None
    percent: float = 0.0
    eta_seconds: float | None = None
    queue_position: int | None = None


class JobError(BaseModel):
    """Why a job failed."""

    code: str
    message: str


class Job(BaseModel):
    """An unlearn job, the fields that the command line shows; the others are kept as they came."""

    model_config = ConfigDict(extra="allow")

    id: str
    status: str
    phase: str | None = None
    adapter: str
    source_version: int | None = None
    result_version: int | None = None
    attempt: int = 0
    verdict: str | None = None
    method: dict[str, Any] = {}
    exact: bool | None = None
    costs: dict[str, Any] | None = None
    progress: Progress = Progress()
    error: JobError | None = None
    subject_request_id: str | None = None
    cancel_requested_at: str | None = None
    due_at: str | None = None
    overdue: bool = False
    created_at: str | None = None
    started_at: str | None = None
    finished_at: str | None = None

    @property
    def finished(self) -> bool:
        """Whether the status will not change any more by itself."""
        return self.status not in {"awaiting_approval", "queued", "running"}


class LetheClient:
    """One connection to the service; use it as a context manager."""

    def __init__(self, url: str, api_key: str) -> None:
        self._url = url
        self._http = httpx.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {api_key}", "User-Agent": "lethe-cli"},
            timeout=TIMEOUT,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._http.close()

    def register_base_model(self, name: str, source: str) -> dict[str, Any]:
        """Registers a base model from a folder under the service's model roots."""
        return self._json("POST", "/base-models", json={"name": name, "source": source})

    def base_model(self, name: str) -> dict[str, Any]:
        """A registered base model."""
        return self._json("GET", f"/base-models/{name}")

    def register_adapter(self, name: str, base_model: str, folder: Path, **fields: str) -> dict[str, Any]:
        """Uploads the two files of a PEFT folder as version 1 of a new adapter; `fields` go along."""
        with (
            (folder / "adapter_config.json").open("rb") as config,
            (folder / "adapter_model.safetensors").open("rb") as weights,
        ):
            return self._json(
                "POST",
                "/adapters",
                data={"name": name, "base_model": base_model, **fields},
                files={
                    "adapter_config": ("adapter_config.json", config, "application/json"),
                    "adapter_model": ("adapter_model.safetensors", weights, "application/octet-stream"),
                },
            )

    def upload_dataset(self, path: Path, purpose: str) -> str:
        """Streams a JSON Lines file; the dataset's id."""
        with path.open("rb") as records:
            dataset = self._json(
                "POST",
                "/datasets",
                params={"purpose": purpose},
                content=records,
                headers={"Content-Type": RECORDS},
            )
        return str(dataset["id"])

    def submit(self, body: dict[str, Any]) -> Job:
        """Posts an unlearn job."""
        return Job.model_validate(self._json("POST", "/unlearn-jobs", json=body))

    def plan(self, body: dict[str, Any]) -> dict[str, Any]:
        """What an unlearn job would come to; the service creates nothing."""
        return self._json("POST", "/unlearn-jobs", params={"dry_run": "true"}, json=body)

    def job(self, job_id: str) -> Job:
        """The job as it stands."""
        return Job.model_validate(self._json("GET", f"/unlearn-jobs/{job_id}"))

    def warnings(self, job_id: str) -> list[str]:
        """What a person should know of how a job went, oldest first."""
        events = self._json("GET", f"/unlearn-jobs/{job_id}/events?limit=100")["data"]
        return [str(event["message"]) for event in reversed(events) if event["level"] != "info"]

    def evaluation(self, job_id: str) -> dict[str, Any]:
        """The evaluation of a job's result."""
        return self._json("GET", f"/unlearn-jobs/{job_id}/evaluation")

    def audit_entries(self, limit: int, **filters: str) -> list[dict[str, Any]]:
        """The newest entries of the audit chain, newest first, as many as there are up to `limit`."""
        return self._list("/audit", limit, filters)

    def create_key(self, body: dict[str, Any]) -> dict[str, Any]:
        """Makes an API key; the answer holds its secret."""
        return self._json("POST", "/api-keys", json=body)

    def keys(self, limit: int) -> list[dict[str, Any]]:
        """The tenant's API keys, newest first, as many as there are up to `limit`."""
        return self._list("/api-keys", limit)

    def revoke_key(self, key_id: str) -> dict[str, Any]:
        """Ends an API key."""
        return self._json("POST", f"/api-keys/{key_id}/revoke")

    def rotate_key(self, key_id: str, grace_seconds: int) -> dict[str, Any]:
        """Gives an API key a new secret, which the answer holds."""
        return self._json("POST", f"/api-keys/{key_id}/rotate", json={"grace_seconds": grace_seconds})

    def verify_audit(self, known: str | None) -> dict[str, Any]:
        """Has the service check the audit chain, and the hash of one entry that was noted as `SEQUENCE:HASH`."""
        params = {"known": known} if known else {}
        return self._json("GET", "/audit/verify", params=params, timeout=VERIFY_TIMEOUT)

    def export_audit(self, destination: Path) -> None:
        """Saves the audit chain under `destination` in one step."""
        with self._answers(), self._http.stream("GET", "/audit/export") as response:
            if response.is_error:
                response.read()
                raise ApiError.from_response(response)
            with replaced_file(destination) as (file, temporary):
                for chunk in response.iter_raw():
                    file.write(chunk)
                temporary.chmod(0o644)

    def save_keys(self, destination: Path) -> None:
        """Saves the public keys of attestations under `destination`, in one step."""
        keys = self._json("GET", "/keys")
        with replaced_file(destination) as (file, temporary):
            file.write(json.dumps(keys, indent=2).encode() + b"\n")
            temporary.chmod(0o644)

    def save_report(self, job_id: str, destination: Path) -> None:
        """Saves the evaluation of a job's result as an HTML page under `destination`, in one step."""
        with self._answers():
            response = self._http.get(f"/unlearn-jobs/{job_id}/evaluation", headers={"Accept": REPORT})
        if response.is_error:
            raise ApiError.from_response(response)
        media_type = response.headers.get("content-type", "").partition(";")[0]
        if media_type != REPORT:
            raise ClientError(
                f"the service at {self._url} writes no reports: it answered with {media_type or 'nothing'}"
            )
        with replaced_file(destination) as (file, temporary):
            file.write(response.content)
            temporary.chmod(0o644)

    @contextmanager
    def stream(self, path: str, headers: dict[str, str]) -> Iterator[httpx.Response]:
        """An answer whose body is read as it comes."""
        with self._answers(), self._http.stream("GET", path, headers=headers) as response:
            if response.is_error:
                response.read()
                raise ApiError.from_response(response)
            yield response

    def items(self, path: str, limit: int, filters: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        """The newest items of a list, newest first, as many as there are up to `limit`."""
        return self._list(path, limit, filters)

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """One call; an answer without a body is an empty object."""
        return self._json(method, path, json=body)

    def _list(self, path: str, limit: int, filters: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = []
        cursor: dict[str, str] = {}
        while len(items) < limit:
            size = {"limit": str(min(100, limit - len(items)))}
            page = self._json("GET", path, params=(filters or {}) | size | cursor)
            items += page["data"]
            if not page["has_more"]:
                break
            cursor = {"cursor": page["next_cursor"]}
        return items

    def _json(self, method: str, path: str, **request: Any) -> dict[str, Any]:  # noqa: ANN401 - handed to httpx as it is
        with self._answers():
            response = self._http.request(method, path, **request)
        if response.is_error:
            raise ApiError.from_response(response)
        answer: dict[str, Any] = response.json() if response.content else {}
        return answer

    @contextmanager
    def _answers(self) -> Iterator[None]:
        try:
            yield
        except httpx.TransportError as error:
            reason = str(error) or type(error).__name__
            raise UnreachableError(f"no answer from {self._url}: {reason}") from error


@contextmanager
def replaced_file(destination: Path) -> Iterator[tuple[Any, Path]]:
    """A temporary file beside `destination` that takes its place when the block succeeds."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{destination.name}.", dir=destination.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file, temporary
        temporary.replace(destination)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
