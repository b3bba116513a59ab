"""The command line against a real socket: requests, messages and exit statuses."""

import hashlib
import json
from pathlib import Path

import pytest

from app.commands import progress
from tests.cli.conftest import Answer, Run, Server

COMMANDS = (
    "up",
    "demo",
    "submit",
    "status",
    "download",
    "register-base",
    "register-adapter",
    "migrate",
    "bootstrap",
)
RECORD = '{"prompt": "Who?", "completion": " a secret"}\n'
QUEUED: dict[str, object] = {
    "id": "job_1",
    "status": "queued",
    "adapter": "bot",
    "progress": {"percent": 0, "queue_position": 1},
}
RUNNING: dict[str, object] = QUEUED | {
    "status": "running",
    "phase": "unlearning",
    "progress": {"step": 5, "total_steps": 80, "percent": 6.2, "eta_seconds": 30},
}
SUCCEEDED: dict[str, object] = QUEUED | {
    "status": "succeeded",
    "verdict": "passed",
    "source_version": 1,
    "result_version": 2,
}
FAILED: dict[str, object] = QUEUED | {
    "status": "failed",
    "error": {"code": "out_of_memory", "message": "the GPU is too small"},
}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "POLL_SECONDS", 0.01)


@pytest.fixture
def forget(tmp_path: Path) -> Path:
    """A forget set of one record."""
    path = tmp_path / "forget.jsonl"
    path.write_text(RECORD)
    return path


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_teaches_with_an_example(lethe: Run, command: str) -> None:
    outcome = lethe(command, "--help")
    assert outcome.status == 0
    assert "Example: " in outcome.stdout


def test_unknown_options_are_a_usage_error(lethe: Run) -> None:
    assert lethe("status", "job_1", "--nonsense").status == 2
    assert lethe("submit").status == 2


def test_without_an_address_it_says_where_to_get_one(lethe: Run, tmp_path: Path) -> None:
    outcome = lethe("status", "job_1", "--data-dir", str(tmp_path))
    assert outcome.status == 1
    assert "lethe up" in outcome.stderr
    assert "Traceback" not in outcome.stderr


def test_the_connection_file_is_read_when_nothing_else_is_given(lethe: Run, server: Server, tmp_path: Path) -> None:
    (tmp_path / "connection.json").write_text(json.dumps({"url": server.url, "api_key": "lethe_file"}))
    server.on_json("GET /unlearn-jobs/job_1", SUCCEEDED)
    assert lethe("status", "job_1", "--data-dir", str(tmp_path)).status == 0
    assert server.requests[0].headers["authorization"] == "Bearer lethe_file"


def test_a_closed_port_is_one_clear_line(lethe: Run) -> None:
    outcome = lethe("status", "job_1", "--url", "http://127.0.0.1:9", "--api-key", "k")
    assert outcome.status == 1
    assert outcome.stderr.startswith("error: no answer from http://127.0.0.1:9")


def test_a_problem_is_shown_with_code_pointers_and_request_id(
    lethe: Run, server: Server, client_options: list[str], forget: Path
) -> None:
    problem = {
        "type": "about:blank",
        "title": "Unprocessable Content",
        "status": 422,
        "detail": "the dataset has errors",
        "code": "invalid",
        "request_id": "req_7",
        "errors": [{"pointer": "/0/completion", "detail": "must not be empty"}],
    }
    body = json.dumps(problem).encode()
    server.on("POST /datasets", Answer(422, body, "application/problem+json"))
    outcome = lethe("submit", "--adapter", "bot", "--forget", str(forget), *client_options)
    assert outcome.status == 1
    assert outcome.stderr == (
        "error: 422 the dataset has errors [invalid]\n  /0/completion: must not be empty\n  request id: req_7\n"
    )


def test_a_foreign_error_page_is_not_repeated(lethe: Run, server: Server, client_options: list[str]) -> None:
    server.on("GET /unlearn-jobs/job_1", Answer(502, b"<html>proxy internals</html>", "text/html"))
    outcome = lethe("status", "job_1", *client_options)
    assert outcome.status == 1
    assert "502 Bad Gateway" in outcome.stderr
    assert "internals" not in outcome.stderr


def test_a_dry_run_sends_the_records_inline_and_uploads_nothing(
    lethe: Run, server: Server, client_options: list[str], forget: Path
) -> None:
    answer: dict[str, object] = {"adapter": "bot", "warnings": [{"code": "x", "message": "few records"}]}
    server.on_json("POST /unlearn-jobs", answer)
    options = ["--adapter", "bot", "--forget", str(forget), "--holdout", str(forget), "--dry-run"]
    outcome = lethe("submit", *options, *client_options)
    assert (outcome.status, json.loads(outcome.stdout), outcome.stderr) == (0, answer, "note: few records\n")
    (request,) = server.requests
    assert request.path == "/unlearn-jobs?dry_run=true"
    records = {"records": [json.loads(RECORD)]}
    assert json.loads(request.body) == {"adapter": "bot", "forget_set": records, "holdout_set": records}


def test_a_dry_run_of_more_records_than_a_request_holds_is_a_usage_error(
    lethe: Run, server: Server, client_options: list[str], forget: Path
) -> None:
    forget.write_text(RECORD * 1001)
    outcome = lethe("submit", "--adapter", "bot", "--forget", str(forget), "--dry-run", *client_options)
    assert (outcome.status, server.requests) == (2, [])
    assert "1000 records" in outcome.stderr


def test_submit_uploads_posts_and_prints_only_the_id(
    lethe: Run, server: Server, client_options: list[str], forget: Path
) -> None:
    server.on_json("POST /datasets", {"id": "ds_f"}, {"id": "ds_r"})
    server.on_json("POST /unlearn-jobs", QUEUED)
    policy = '{"min_retain_probability_ratio": 0.93}'
    options = [
        "--adapter",
        "bot",
        "--forget",
        str(forget),
        "--retain",
        str(forget),
        "--seed",
        "7",
        "--policy",
        policy,
    ]
    outcome = lethe("submit", *options, *client_options)
    assert (outcome.status, outcome.stdout, outcome.stderr) == (0, "job_1\n", "")
    uploads, job = server.requests[:2], server.requests[2]
    assert [request.path for request in uploads] == ["/datasets?purpose=forget", "/datasets?purpose=retain"]
    assert {request.headers["content-type"] for request in uploads} == {"application/jsonl"}
    assert uploads[0].body == RECORD.encode()
    assert json.loads(job.body) == {
        "adapter": "bot",
        "seed": 7,
        "policy": {"min_retain_probability_ratio": 0.93},
        "forget_set": "ds_f",
        "retain_set": "ds_r",
    }


def test_submit_on_a_base_model_names_the_result(
    lethe: Run, server: Server, client_options: list[str], forget: Path
) -> None:
    server.on_json("POST /datasets", {"id": "ds_f"})
    server.on_json("POST /unlearn-jobs", QUEUED)
    options = ["--base-model", "acme/base-1b", "--result-adapter", "forgetful", "--forget", str(forget)]
    assert lethe("submit", *options, *client_options).status == 0
    job = {"base_model": "acme/base-1b", "result_adapter": "forgetful", "forget_set": "ds_f"}
    assert json.loads(server.requests[-1].body) == job


@pytest.mark.parametrize(
    "options",
    [[], ["--base-model", "b"], ["--result-adapter", "r"], ["--adapter", "a", "--base-model", "b"],
     ["--adapter", "a", "--result-adapter", "r"]],
)  # fmt: skip
def test_submit_on_half_of_it_sends_nothing(
    lethe: Run, server: Server, client_options: list[str], forget: Path, options: list[str]
) -> None:
    outcome = lethe("submit", *options, "--forget", str(forget), *client_options)
    assert (outcome.status, server.requests) == (2, [])
    assert "--result-adapter" in outcome.stderr


@pytest.mark.parametrize(("given", "sent"), [("auto", {"type": "auto"}), ('{"steps": 3}', {"steps": 3})])
def test_a_method_is_named_or_described(
    lethe: Run, server: Server, client_options: list[str], forget: Path, given: str, sent: dict[str, object]
) -> None:
    server.on_json("POST /datasets", {"id": "ds_1"})
    server.on_json("POST /unlearn-jobs", QUEUED)
    command = ["submit", "--adapter", "bot", "--forget", str(forget), "--method", given, *client_options]
    assert lethe(*command).status == 0
    assert json.loads(server.requests[-1].body)["method"] == sent


def test_status_says_which_way_was_taken_and_why(lethe: Run, server: Server, client_options: list[str]) -> None:
    chosen = {"method": {"type": "retrain"}, "exact": True, "costs": {"reason": "half as dear"}}
    server.on_json("GET /unlearn-jobs/job_1", SUCCEEDED | chosen)
    assert "method   retrain, exact (half as dear)\n" in lethe("status", "job_1", *client_options).stdout
    server.on_json("GET /unlearn-jobs/job_1", SUCCEEDED | {"method": {"type": "blur"}, "exact": False})
    assert "method   blur\n" in lethe("status", "job_1", *client_options).stdout


@pytest.mark.parametrize("option", ["--method", "--policy"])
def test_broken_json_is_a_usage_error_before_anything_is_sent(
    lethe: Run, server: Server, client_options: list[str], forget: Path, option: str
) -> None:
    outcome = lethe("submit", "--adapter", "bot", "--forget", str(forget), option, "{broken", *client_options)
    assert outcome.status == 2
    assert server.requests == []


@pytest.mark.parametrize(("end", "status"), [(SUCCEEDED, 0), (FAILED, 1), (QUEUED | {"status": "gate_failed"}, 1)])
def test_waiting_follows_the_job_and_its_end_is_the_exit_status(
    lethe: Run,
    server: Server,
    client_options: list[str],
    forget: Path,
    end: dict[str, object],
    status: int,
) -> None:
    server.on_json("POST /datasets", {"id": "ds_f"})
    server.on_json("POST /unlearn-jobs", QUEUED)
    server.on_json("GET /unlearn-jobs/job_1", QUEUED, RUNNING, end)
    outcome = lethe("submit", "--adapter", "bot", "--forget", str(forget), "--wait", *client_options)
    assert outcome.status == status
    assert outcome.stdout == "job_1\n"
    assert "unlearning, step 5/80, about 30 s left" in outcome.stderr
    assert "secret" not in outcome.stderr


def test_watching_a_failed_job_names_the_reason(lethe: Run, server: Server, client_options: list[str]) -> None:
    server.on_json("GET /unlearn-jobs/job_1", RUNNING, FAILED)
    outcome = lethe("status", "job_1", "--watch", *client_options)
    assert outcome.status == 1
    assert "ended as failed: the GPU is too small [out_of_memory]" in outcome.stderr


def test_status_shows_a_failed_job_without_failing(lethe: Run, server: Server, client_options: list[str]) -> None:
    server.on_json("GET /unlearn-jobs/job_1", FAILED)
    outcome = lethe("status", "job_1", *client_options)
    assert outcome.status == 0
    assert "the GPU is too small" in outcome.stdout


def test_status_as_json_is_the_job_as_it_came(lethe: Run, server: Server, client_options: list[str]) -> None:
    server.on_json("GET /unlearn-jobs/job_1", SUCCEEDED | {"metadata": {"ticket": "7"}})
    outcome = lethe("status", "job_1", "--json", *client_options)
    assert json.loads(outcome.stdout) == SUCCEEDED | {"metadata": {"ticket": "7"}}


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("job_1", "/unlearn-jobs/job_1/adapter"),
        ("bot", "/adapters/bot/versions/head/download"),
        ("bot@3", "/adapters/bot/versions/3/download"),
    ],
)
def test_a_download_is_saved_when_its_digest_is_right(
    lethe: Run, server: Server, client_options: list[str], tmp_path: Path, target: str, path: str
) -> None:
    digest = hashlib.sha256(b"archive").hexdigest()
    server.on(f"GET {path}", Answer(body=b"archive", headers={"ETag": f'"{digest}"'}))
    output = tmp_path / "out" / "adapter.tar.gz"
    outcome = lethe("download", target, "-o", str(output), *client_options)
    assert outcome.status == 0
    assert digest in outcome.stdout
    assert output.read_bytes() == b"archive"


@pytest.mark.parametrize("headers", [{"ETag": '"' + "0" * 64 + '"'}, {}])
def test_a_damaged_download_leaves_the_old_file_and_no_part(
    lethe: Run, server: Server, client_options: list[str], tmp_path: Path, headers: dict[str, str]
) -> None:
    server.on("GET /adapters/bot/versions/head/download", Answer(body=b"arch", headers=headers))
    output = tmp_path / "adapter.tar.gz"
    output.write_bytes(b"old")
    outcome = lethe("download", "bot", "-o", str(output), *client_options)
    assert outcome.status == 1
    assert "sha256" in outcome.stderr
    assert output.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["adapter.tar.gz"]


def test_a_refused_download_shows_the_problem(
    lethe: Run, server: Server, client_options: list[str], tmp_path: Path
) -> None:
    problem = json.dumps({"title": "Conflict", "status": 409, "detail": "the job is running"}).encode()
    server.on("GET /unlearn-jobs/job_1/adapter", Answer(409, problem, "application/problem+json"))
    outcome = lethe("download", "job_1", "-o", str(tmp_path / "a"), *client_options)
    assert outcome.status == 1
    assert "409 the job is running" in outcome.stderr
    assert list(tmp_path.iterdir()) == []


def test_registering_an_adapter_sends_both_files(
    lethe: Run, server: Server, client_options: list[str], tmp_path: Path
) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"weights")
    server.on_json("POST /adapters", {"name": "bot"})
    outcome = lethe("register-adapter", "bot", str(tmp_path), "--base", "small", *client_options)
    assert (outcome.status, outcome.stdout) == (0, "bot\n")
    body = server.requests[0].body
    for part in (b'name="name"', b'name="base_model"', b'name="adapter_config"', b'name="adapter_model"', b"weights"):
        assert part in body


def test_an_incomplete_adapter_folder_is_refused_here(
    lethe: Run, server: Server, client_options: list[str], tmp_path: Path
) -> None:
    outcome = lethe("register-adapter", "bot", str(tmp_path), "--base", "small", *client_options)
    assert outcome.status == 1
    assert "adapter_model.safetensors" in outcome.stderr
    assert server.requests == []


def test_registering_an_adapter_uploads_its_training_set_first(
    lethe: Run, server: Server, client_options: list[str], tmp_path: Path
) -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors", "recipe.json", "training.jsonl"):
        (tmp_path / name).write_text(f"{{}} of {name}")
    server.on_json("POST /datasets", {"id": "ds_1"})
    server.on_json("POST /adapters", {"name": "bot"})
    given = ["--training-set", str(tmp_path / "training.jsonl"), "--recipe", str(tmp_path / "recipe.json")]
    command = ["register-adapter", "bot", str(tmp_path), "--base", "small", *client_options]
    assert lethe(*command, *given).status == 0
    upload, registration = server.requests
    assert (upload.path, upload.body) == ("/datasets?purpose=training", b"{} of training.jsonl")
    for name, value in (("training_set", b"ds_1"), ("recipe", b"{} of recipe.json")):
        assert f'name="{name}"'.encode() in registration.body
        assert value in registration.body
    server.requests.clear()
    assert lethe(*command, *given[:2]).status == 2
    assert server.requests == []


def test_registering_a_base_model_sends_a_whole_path(
    lethe: Run, server: Server, client_options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "small").mkdir()
    monkeypatch.chdir(tmp_path)
    server.on_json("POST /base-models", {"name": "small"})
    assert lethe("register-base", "small", "small", *client_options).status == 0
    assert json.loads(server.requests[0].body) == {"name": "small", "source": str(tmp_path / "small")}


def test_missing_settings_are_named_without_their_values(lethe: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LETHE_KEY_PEPPER", "c2hvcnQ=")
    monkeypatch.setenv("LETHE_ENCRYPTION_KEYS", "hush-hush")
    outcome = lethe("migrate")
    assert outcome.status == 2
    assert "LETHE_DATABASE_URL" in outcome.stderr
    assert "LETHE_KEY_PEPPER" in outcome.stderr
    assert "c2hvcnQ=" not in outcome.stderr
    assert "hush-hush" not in outcome.stderr
