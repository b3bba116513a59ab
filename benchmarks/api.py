"""What the API costs: ``python -m benchmarks.api --help``.

Real processes on this machine: a Postgres and a Redis as `lethe up` starts them, one uvicorn worker with Lethe, one
with an application of FastAPI and psycopg alone (api_bare.py). The two are asked in turns, in random order, and
compared within a turn: whatever else the machine is doing slows both alike.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from benchmarks.api_lists import fill, measure_lists
from benchmarks.api_memory import measure_upload
from benchmarks.api_requests import CONNECTIONS, RECORDS, Bench
from benchmarks.api_servers import ADAPTER, Machine, running

MIB = 2**20
BARS = {
    "post_ratio": (">=", 0.4),
    "poll_ratio": (">=", 0.6),
    "upload_extra_mb": ("<=", 80.0),
    "list_latency_ratio": ("<=", 1.5),
}
"""What the API promises."""
LIBRARIES = ("fastapi", "uvicorn", "sqlalchemy", "psycopg", "pydantic")

EPILOG = """\
figures:
  post_ratio          requests per second of POST /unlearn-jobs to those of the bare application, which validates a
                      body of the same shape, inserts one row and commits; each job names a forget set of its own
                      and carries an Idempotency-Key
  poll_ratio          the same of GET /unlearn-jobs/{id} and selecting one row
  upload_extra_mb     peak resident memory of the API process while a dataset streams in, less that of the idle one
  list_latency_ratio  median latency of GET /unlearn-jobs over many jobs to that over few, of the worst filter;
                      both pages have as many rows as the shorter one by itself; uncorrected_ratio, printed beside it,
                      is that of the pages as they come

examples:
  python -m benchmarks.api --json result.json
  python -m benchmarks.api --quick
"""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.api",
        description="Throughput, memory and latency of the API, against a bare application on the same machine.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, help="timed turns; default 12, 4 with --quick")
    parser.add_argument("--requests", type=int, help="requests of a turn; default 300, 50 with --quick")
    parser.add_argument("--upload-mib", type=int, help="size of the dataset; default 1024, 128 with --quick")
    parser.add_argument("--jobs", type=int, help="many jobs; default 1,000,000, 100,000 with --quick")
    parser.add_argument("--seed", type=int, default=0, help="of the order of the turns; default 0")
    parser.add_argument("--quick", action="store_true", help="less of everything, to see that all runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers to a file")
    options = parser.parse_args(arguments)
    usual = (4, 50, 128, 100_000) if options.quick else (12, 300, 1024, 1_000_000)
    for name, value in zip(("rounds", "requests", "upload_mib", "jobs"), usual, strict=True):
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


def measure(machine: Machine, options: argparse.Namespace) -> dict[str, Any]:
    """Everything, one after the other."""
    lethe = machine.lethe("lethe")
    bench = Bench(machine.bare(), lethe, options.seed)
    post = bench.post(options.rounds, options.requests)
    show("POST /unlearn-jobs", post)
    poll = bench.poll(options.rounds, 2 * options.requests)
    show("GET /unlearn-jobs/{id}", poll)
    upload = measure_upload(machine.lethe("upload"), options.upload_mib * MIB)
    show("upload", upload)
    few, many = machine.lethe("few"), machine.lethe("many")
    counts = (1000, options.jobs)
    for server, count in zip((few, many), counts, strict=True):
        fill(server, Bench(server, server, options.seed).one_job(), count)
    lists = measure_lists(few, many, counts, ADAPTER, 10 * options.rounds)
    show("GET /unlearn-jobs", lists)
    headline = {
        "post_ratio": post["ratio"],
        "poll_ratio": poll["ratio"],
        "upload_extra_mb": upload["extra_mb"],
        "list_latency_ratio": lists["ratio"],
    }
    return headline | {"post": post, "poll": poll, "upload": upload, "list": lists}


def show(name: str, row: dict[str, Any]) -> None:
    """Print one measurement."""
    print(f"\n{name}")
    for key, value in rounded(row).items():
        if isinstance(value, dict) and all(isinstance(inner, dict) for inner in value.values()):
            for inner, cells in value.items():
                print(f"  {inner:<26}{json.dumps(cells)}")
        else:
            print(f"  {key:<26}{json.dumps(value)}")


def rounded(value: Any) -> Any:  # noqa: ANN401 - whatever JSON holds
    """The same with four digits of every number: more would be noise."""
    if isinstance(value, dict):
        return {key: rounded(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(entry) for entry in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def verdicts(result: dict[str, Any]) -> dict[str, str]:
    """Each bar, and whether it was met as measured."""
    told = {}
    for key, (sign, bar) in BARS.items():
        met = result[key] >= bar if sign == ">=" else result[key] <= bar
        told[key] = f"{result[key]:.4g}, wanted {sign} {bar:g}: {'met' if met else 'missed'}"
    return told


def machine_facts() -> dict[str, Any]:
    """What the numbers depend on. `load` is the run queue's length when the measuring began."""
    return {
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        **{name: version(name) for name in LIBRARIES},
        "connections": CONNECTIONS,
        "records_of_a_forget_set": RECORDS,
        "load": os.getloadavg()[0],
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except FileNotFoundError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def command(options: argparse.Namespace) -> str:
    """The call that gives these numbers again, without the folder that they were written to."""
    return (
        f"python -m benchmarks.api --rounds {options.rounds} --requests {options.requests}"
        f" --upload-mib {options.upload_mib} --jobs {options.jobs} --seed {options.seed}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write the file."""
    options = parse(arguments)
    facts = machine_facts()
    with running() as machine:
        result = measure(machine, options)
    bars = verdicts(result)
    print("\n" + "\n".join(f"{name}: {told}" for name, told in bars.items()))
    report = result | {"bars": bars, "machine": facts, "command": command(options)}
    if options.json:
        options.json.write_text(json.dumps(rounded(report), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
