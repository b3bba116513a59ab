"""docker-compose.yml against the compose specification and the house's own rules."""

import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from app.settings import Settings

ROOT = Path(__file__).parents[2]
# The compose specification's own schema, which the package carries.
SCHEMA = json.loads((files("check_jsonschema") / "builtin_schemas/vendor/compose-spec.json").read_text())
COMPOSE = (ROOT / "docker-compose.yml").read_text()
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE)["services"]
ONE_SHOT = {"migrate"}
VARIABLE = re.compile(r"(?<!\$)\$\{([A-Z_]+)(:?[-?+])?[^}]*\}|(?<!\$)\$([A-Z_]+)")
MAY_HAVE_A_DEFAULT = {"LETHE_PORT"}
OURS = ("migrate", "api", "gpu-worker", "light-worker")
# What stands in docker-compose.yml itself, and secrets that must be given.
DECIDED = {"LETHE_DATABASE_URL", "LETHE_REDIS_URL", "LETHE_STORAGE_DIR", "LETHE_MODEL_ROOTS"}
REQUIRED = {"LETHE_ENCRYPTION_KEYS", "LETHE_KEY_PEPPER", "LETHE_SIGNING_KEY"}
# Settings that not all processes get, with those that do. The worker's image holds no bitsandbytes.
NARROWER = {"LETHE_SIGNING_KEY": ["gpu-worker"], "LETHE_FOUR_BIT": []}


@pytest.mark.parametrize("name", ["docker-compose.yml", "docker-compose.gpu.yml"])
def test_it_follows_the_compose_specification(name: str) -> None:
    content = yaml.safe_load((ROOT / name).read_text())
    assert [error.message for error in Draft202012Validator(SCHEMA).iter_errors(content)] == []


def test_every_variable_is_required_unless_it_is_no_secret() -> None:
    found = list(VARIABLE.finditer(COMPOSE))
    assert found
    for match in found:
        if match[1] not in MAY_HAVE_A_DEFAULT:
            assert match[2] == ":?", f"{match[0]} must be refused when it is empty"


def test_every_variable_stands_in_the_example_without_a_value() -> None:
    lines = (ROOT / ".env.example").read_text().splitlines()
    settings = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    assert set(settings) == {match[1] for match in VARIABLE.finditer(COMPOSE)} - MAY_HAVE_A_DEFAULT
    assert set(settings.values()) == {""}


@pytest.mark.parametrize("setting", Settings.model_fields)
def test_every_setting_reaches_our_processes_or_is_left_out_on_purpose(setting: str) -> None:
    name = f"LETHE_{setting.upper()}"
    assert [service for service in OURS if name in SERVICES[service]["environment"]] == NARROWER.get(name, [*OURS])


@pytest.mark.parametrize("name", OURS)
def test_what_is_not_set_stays_unset(name: str) -> None:
    environment = SERVICES[name]["environment"]
    assert set(environment) <= {f"LETHE_{setting.upper()}" for setting in Settings.model_fields}
    # No value at all: compose takes it from .env, or leaves the variable away.
    assert {key for key, value in environment.items() if value is not None} <= DECIDED | REQUIRED


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_tells_its_health_or_ends_by_itself(name: str) -> None:
    service = SERVICES[name]
    if name in ONE_SHOT:
        assert service["restart"] == "no"
    else:
        assert service["restart"] == "unless-stopped"
        assert service["healthcheck"]["test"][0] in {"CMD", "CMD-SHELL"}


@pytest.mark.parametrize("name", SERVICES)
def test_what_a_service_waits_for_can_become_true(name: str) -> None:
    for needed, condition in SERVICES[name].get("depends_on", {}).items():
        expected = "service_completed_successfully" if needed in ONE_SHOT else "service_healthy"
        assert condition == {"condition": expected}


def test_the_schema_is_current_before_api_and_workers_start() -> None:
    for name in ("api", "gpu-worker", "light-worker"):
        assert "migrate" in SERVICES[name]["depends_on"]


@pytest.mark.parametrize("name", ["gpu-worker", "light-worker"])
def test_workers_have_time_to_hand_their_run_back(name: str) -> None:
    assert SERVICES[name]["stop_grace_period"] == "45s"


def test_only_one_service_carries_the_clock() -> None:
    assert [name for name, service in SERVICES.items() if "-B" in service.get("command", [])] == ["light-worker"]


def test_nothing_but_the_api_is_published_and_that_on_loopback_only() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert list(published) == ["api"]
    assert all(port.startswith("127.0.0.1:") for port in published["api"])


@pytest.mark.parametrize("name", ["migrate", "api", "gpu-worker", "light-worker"])
def test_our_processes_run_without_privileges(name: str) -> None:
    assert SERVICES[name]["cap_drop"] == ["ALL"]
    assert SERVICES[name]["security_opt"] == ["no-new-privileges:true"]


def test_only_the_process_that_signs_has_the_signing_key() -> None:
    having = [name for name, service in SERVICES.items() if "LETHE_SIGNING_KEY" in service.get("environment", {})]
    assert having == ["gpu-worker"]


def test_named_volumes_are_declared_and_used() -> None:
    declared = set(yaml.safe_load(COMPOSE)["volumes"])
    mounts = [mount.split(":")[0] for service in SERVICES.values() for mount in service.get("volumes", [])]
    assert declared == {source for source in mounts if source.isidentifier()}


def test_the_gpu_override_changes_a_service_that_exists() -> None:
    override = yaml.safe_load((ROOT / "docker-compose.gpu.yml").read_text())["services"]
    assert set(override) <= set(SERVICES)
