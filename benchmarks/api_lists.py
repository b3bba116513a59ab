"""Latency of lists over few and over many jobs: two services that differ in nothing but their rows.

Pages of the same length are compared, and pages as they come beside them.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from statistics import median
from typing import Any
from urllib.parse import quote

import psycopg
from psycopg import sql

from benchmarks.api_load import Load, documents, quartiles, request_bytes, send_all
from benchmarks.api_requests import check
from benchmarks.api_servers import Server, connect

TENANTS = 200
OURS = 5  # one job in so many belongs to the tenant that asks
WARM_UP = 3
# Every other column of a job and its run is taken from one that was made through the API.
JOB = {
    "id": "'job_' || md5('job' || i)",
    "run_id": "'run_' || md5('run' || i)",
    "tenant_id": "tenant",
    "adapter_id": "adapter",
    "status": "state",
    "subject_request_id": "'dsr-' || i",
    "requested_at": "at - (i % 72) * interval '1 hour'",
    "due_at": "at - (i % 72) * interval '1 hour' + interval '1 month'",
    "metadata": "jsonb_build_object('region', (array['eu', 'us', 'apac'])[i % 3 + 1], 'ticket', 'T-' || i,"
    " 'batch', (i / 1000)::text)",
    "idempotency_key": "NULL",
    "request_digest": "NULL",
    "created_at": "at",
    "finished_at": "CASE WHEN state <> 'queued' THEN at + interval '20 minutes' END",
}
RUN = {
    "id": "'run_' || md5('run' || i)",
    "tenant_id": "tenant",
    "adapter_id": "adapter",
    "status": "state",
    "created_at": "at",
    "started_at": "CASE WHEN state <> 'queued' THEN at END",
    "finished_at": "CASE WHEN state <> 'queued' THEN at + interval '20 minutes' END",
}
# Over two years, evenly; the newest half per cent is queued, all others have ended.
ROWS = """
CREATE UNLOGGED TABLE bench_rows AS
SELECT i, now() - (%(count)s - i) * (interval '2 years' / %(count)s) AS at,
    CASE WHEN i %% %(ours)s = 0 THEN %(tenant)s ELSE 'ten_bench_' || i %% %(tenants)s END AS tenant,
    CASE WHEN i %% %(ours)s = 0 THEN %(adapter)s ELSE 'ada_bench_' || i %% %(tenants)s END AS adapter,
    CASE WHEN i >= %(count)s * 0.995 THEN 'queued' WHEN i %% 23 = 0 THEN 'gate_failed' WHEN i %% 47 = 0 THEN 'failed'
        WHEN i %% 211 = 0 THEN 'cancelled' ELSE 'succeeded' END AS state
FROM generate_series(0, %(count)s - 1) AS i
"""
OTHERS = """
INSERT INTO tenants (id, name) SELECT 'ten_bench_' || n, 'bench ' || n FROM generate_series(0, %(tenants)s - 1) AS n
"""


def fill(server: Server, job_id: str, count: int) -> None:
    """Copy a job `count` times, for many tenants."""
    with connect(server) as connection:
        # Foreign keys are not checked row by row: what is copied refers to what is there.
        connection.execute("SET session_replication_role = replica; SET synchronous_commit = off")
        found = connection.execute(
            "SELECT tenant_id, adapter_id FROM unlearn_jobs WHERE id = %s", (job_id,)
        ).fetchone()
        tenant, adapter = found or ("", "")
        values = {"count": count, "ours": OURS, "tenants": TENANTS, "tenant": tenant, "adapter": adapter}
        connection.execute(OTHERS, values)
        copies = {"id": "'ada_bench_' || n", "tenant_id": "'ten_bench_' || n"}
        series = sql.SQL("generate_series(0, {}) AS n").format(sql.Literal(TENANTS - 1))
        _copy(connection, "adapters", copies, series, "id = {}", str(adapter))
        connection.execute(ROWS, values)
        rows = sql.SQL("bench_rows")
        _copy(connection, "runs", RUN, rows, "id = (SELECT run_id FROM unlearn_jobs WHERE id = {})", job_id)
        _copy(connection, "unlearn_jobs", JOB, rows, "id = {}", job_id)
        connection.execute("DROP TABLE bench_rows")
        for table in ("runs", "unlearn_jobs", "adapters", "tenants"):
            connection.execute(sql.SQL("VACUUM ANALYZE {}").format(sql.Identifier(table)))


def _copy(
    connection: psycopg.Connection[Any],
    table: str,
    changed: dict[str, str],
    rows: sql.Composable,
    which: str,
    template: str,
) -> None:
    """Insert a row of `table` once for each of `rows`, with the changed columns."""
    names = connection.execute(
        "SELECT column_name FROM information_schema.columns WHERE table_name = %s AND table_schema = 'public'"
        " AND is_generated = 'NEVER'",
        (table,),
    ).fetchall()
    columns = [str(name) for (name,) in names]
    taken = [sql.SQL(changed[name]) if name in changed else sql.Identifier("t", name) for name in columns]
    statement = sql.SQL("INSERT INTO {0} ({1}) SELECT {2} FROM {3}, (SELECT * FROM {0} WHERE {4}) AS t").format(
        sql.Identifier(table),
        sql.SQL(", ").join(map(sql.Identifier, columns)),
        sql.SQL(", ").join(taken),
        rows,
        sql.SQL(which).format(sql.Literal(template)),
    )
    connection.execute(statement)


def queries(count: int, adapter: str) -> dict[str, str]:
    """What is asked of a service with `count` jobs. `i` is a job of ours from the middle."""
    now, middle = datetime.now(UTC), count // 2 // OURS * OURS
    soon, old = (quote((now + timedelta(days=days)).isoformat()) for days in (7, -365))
    return {
        "default": "",
        "status=queued": "status=queued",
        "status=succeeded": "status=succeeded",
        "status=cancelled": "status=cancelled",
        "adapter": f"adapter={adapter}",
        "subject_request_id": f"subject_request_id=dsr-{middle}",
        "subject_request_id, none": "subject_request_id=nobody",
        "metadata, common": "metadata[region]=eu",
        "metadata, one job": f"metadata[ticket]=T-{middle}",
        "metadata, none": "metadata[ticket]=none",
        "due_before, in a week": f"due_before={soon}",
        "due_before, a year ago": f"due_before={old}",
    }


def measure_lists(few: Server, many: Server, counts: tuple[int, int], adapter: str, rounds: int) -> dict[str, Any]:
    """Median latencies of each query on both services, asked in turns by one client, and the worst ratio.

    Where few jobs fill less of a page than many do, writing longer pages would count as finding them. So both are
    asked for as many rows as the shorter page has, and for one where that is empty: `ratio`. What a caller gets who
    names no limit is `uncorrected_ratio`.
    """
    both = (few, many)
    asked = {server: queries(count, adapter) for server, count in zip(both, counts, strict=True)}
    rows = {name: [_rows(server, asked[server][name]) for server in both] for name in asked[few]}
    limits = {name: f"&limit={max(1, min(lengths))}" for name, lengths in rows.items()}
    taken: dict[str, dict[str, tuple[list[float], list[float]]]] = {
        name: {"": ([], []), limit: ([], [])} for name, limit in limits.items()
    }
    for number in range(-WARM_UP, rounds):
        for name, by_limit in taken.items():
            for limit, latencies in by_limit.items():
                for server, of_server in zip(both, latencies, strict=True):
                    load = _ask(server, asked[server][name] + limit)
                    if number >= 0:
                        of_server += load.latencies
    found = {
        name: _row(*taken[name][limit])
        | {"rows": rows[name], "limit": int(limit.partition("=")[2]), "uncorrected": _row(*taken[name][""])}
        for name, limit in limits.items()
    }
    worst = max(found, key=lambda name: float(found[name]["ratio"]))
    uncorrected = max(found, key=lambda name: float(found[name]["uncorrected"]["ratio"]))
    return {
        "ratio": found[worst]["ratio"],
        "worst": worst,
        "uncorrected_ratio": found[uncorrected]["uncorrected"]["ratio"],
        "uncorrected_worst": uncorrected,
        "jobs": counts,
        "requests_each": rounds,
        "queries": found,
    }


def _rows(server: Server, query: str) -> int:
    """How many rows the first page has."""
    (page,) = documents(_ask(server, query, keep=True))
    return len(page["data"])


def _ask(server: Server, query: str, *, keep: bool = False) -> Load:
    load = send_all(server.port, [request_bytes("GET", f"/unlearn-jobs?{query}", server.key)], 1, keep=keep)
    check(query, load, 200)
    return load


def _row(few: list[float], many: list[float]) -> dict[str, Any]:
    few_ms, many_ms = ([latency * 1e3 for latency in latencies] for latencies in (few, many))
    return {
        "ratio": median(many_ms) / median(few_ms),
        "ms": [median(few_ms), median(many_ms)],
        "ms_quartiles": [quartiles(few_ms), quartiles(many_ms)],
    }
