"""make chaos: jobs flow through real processes that are killed, put to sleep and cut off at random moments.

After every few faults all of it is let run, and checked: nothing promised is lost, nothing is done twice, bytes and
rows agree, and every version has the bytes that an undisturbed run gives. The same seed draws the same faults; when
they hit is the machine's doing.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import psycopg

from app.demo.files import find_files
from benchmarks.chaos_callers import Callers
from benchmarks.chaos_checks import Findings, check
from benchmarks.chaos_faults import Faults, Harm
from benchmarks.chaos_service import Service

BATCH = 50  # faults between two checks
PAUSE_SECONDS = 0.5, 4.0  # between two faults
MOST_WAIT = 120.0


@dataclass
class Open:
    """A fault whose end is waited for."""

    harm: Harm
    since: float


class Watch:
    """How long it takes until the service is whole again after each fault, in seconds."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._open: list[Open] = []
        self.took: dict[str, list[float]] = defaultdict(list)
        self.count: dict[str, int] = defaultdict(int)

    def note(self, harm: Harm, at: float) -> None:
        """Something was done."""
        self.count[harm.kind] += 1
        if harm.run is not None or harm.detail in ("api", "postgres", "redis"):
            self._open.append(Open(harm, at))

    def look(self) -> None:
        """See what is whole again."""
        if not self._open:
            return
        ready, held = self._service.ready(), self._attempts()
        for each in list(self._open):
            over = ready if each.harm.run is None else _went_on(each.harm.run, held)
            if over:
                self.took[each.harm.kind].append(time.monotonic() - each.since)
            if over or time.monotonic() - each.since > MOST_WAIT:
                self._open.remove(each)

    def _attempts(self) -> dict[str, tuple[int, str]]:
        try:
            with self._service.connect() as connection:
                return {str(row[0]): (row[1], str(row[2])) for row in connection.execute(_RUNS)}  # type: ignore[misc]
        except psycopg.Error:
            return {}


_RUNS = "SELECT id, attempt, status FROM runs"


def _went_on(run: tuple[str, int], held: dict[str, tuple[int, str]]) -> bool:
    """Whether a run has a later attempt, or has ended."""
    attempt, status = held.get(run[0], (0, ""))
    return attempt > run[1] or status not in ("queued", "running", "")


def main() -> int:
    """Do it; 0 when nothing was violated."""
    given = _parser().parse_args()
    folder = Path(tempfile.mkdtemp(prefix="lethe-chaos-"))
    (folder / "tmp").mkdir()
    service = Service(folder / "data", find_files().root, folder / "service.log")
    service.environment["TMPDIR"] = str(folder / "tmp")
    began = time.monotonic()
    try:
        found, watch, done = _torment(service, given.seed, given.faults)
    finally:
        service.stop()
    result = {
        "seed": given.seed,
        "faults": done,
        "jobs": found.jobs,
        "resumed": found.resumed,
        "lost": found.lost,
        "doubled": found.doubled,
        "violations": len(found.violations),
        "resume_identical": found.resume_identical,
        "leftovers_removed": found.leftovers,
        "seconds": round(time.monotonic() - began, 1),
        "recovery_seconds": {
            kind: {"median": round(median(took), 1), "most": round(max(took), 1), "measured": len(took)}
            for kind, took in sorted(watch.took.items())
        },
        "by_kind": dict(sorted(watch.count.items())),
        "found": found.violations,
    }
    _print(result)
    if given.json:
        Path(given.json).write_text(json.dumps(result, indent=2) + "\n")
    if found.violations:
        print(f"the service's output is in {folder}/service.log")
        return 1
    shutil.rmtree(folder)
    return 0


def _torment(service: Service, seed: int, faults: int) -> tuple[Findings, Watch, int]:
    rng, watch, all_found = random.Random(seed), Watch(service), Findings()
    service.start()
    callers, harms = Callers(service, find_files()), Faults(service, rng)
    callers.ask()  # undisturbed: what every other job is compared with
    check(service, callers)
    callers.start()
    done = 0
    while done < faults:
        callers.send(more=True)
        for _ in range(min(BATCH, faults - done)):
            _pass(harms, watch, rng.uniform(*PAUSE_SECONDS))
            at = time.monotonic()
            harm = harms.next()
            watch.note(harm, at)
            done += 1
            print(f"{done:4} {harm.kind}: {harm.detail}", flush=True)
        callers.send(more=False)
        _merge(all_found, check(service, callers))
        print(f"     checked: {all_found.jobs} jobs, {len(all_found.violations)} violations", flush=True)
    callers.end()
    return all_found, watch, done


def _pass(harms: Faults, watch: Watch, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        harms.wait(0.3)
        watch.look()


def _merge(total: Findings, found: Findings) -> None:
    total.lost += found.lost
    total.doubled += found.doubled
    total.violations += [each for each in found.violations if each not in total.violations]
    total.leftovers += found.leftovers
    total.resumed, total.jobs, total.digests = found.resumed, found.jobs, found.digests


def _print(result: dict[str, object]) -> None:
    kinds, recovery = result["by_kind"], result["recovery_seconds"]
    assert isinstance(kinds, dict)  # noqa: S101
    assert isinstance(recovery, dict)  # noqa: S101
    print(f"\n{'fault':34} {'times':>5}  {'whole again after (median, most)':>32}")
    for kind, times in kinds.items():
        took = recovery.get(kind)
        print(f"{kind:34} {times:5}  " + (f"{took['median']:.1f} s, {took['most']:.1f} s".rjust(32) if took else ""))
    print()
    for name in ("faults", "jobs", "resumed", "lost", "doubled", "violations", "resume_identical", "seconds"):
        print(f"{name:18} {result[name]}")
    for each in result["found"]:  # type: ignore[attr-defined]
        print(f"  {each}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--json", metavar="FILE")
    return parser


if __name__ == "__main__":
    sys.exit(main())
