"""`lethe doctor`. Exit status: 0 all is well, 1 something is left."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from functools import partial

import structlog

from app.kit import scratch
from worker.doctor import blobs, rows
from worker.doctor.findings import Finding

PASSES = 2
_JSON = ("kind", "subject", "detail", "remedy")


def examine(age: float, *, digests: bool = False) -> list[Finding]:
    """Everything that is not as it should be.

    Args:
        age: seconds for which nobody must have touched what may still be in use.
        digests: read all adapters and compare their digests.
    """
    if blobs.storage_is_missing():
        # Whoever repaired now would give up everything.
        detail, remedy = "no blob that a row names is there", "see that LETHE_STORAGE_DIR is mounted"
        return [Finding("storage_missing", "storage", detail, remedy)]
    return [
        *rows.contradictions(),
        *rows.undone(),
        *blobs.without_bytes(digests=digests),
        *blobs.without_rows(age),
        *_folders(),
    ]


def _folders() -> Iterator[Finding]:
    for folder in scratch.abandoned_folders():
        detail, repair = "its process is gone", partial(scratch.remove, folder)
        yield Finding("abandoned_folder", str(folder), detail, "deleted", repair)


def main(arguments: list[str] | None = None) -> int:
    """Look, repair where that is asked for, tell; the exit status."""
    given = _parser().parse_args(arguments)
    found = examine(given.min_age, digests=given.digests)
    left = found
    # What is repaired may leave something itself, such as the bytes of a dataset whose key was destroyed.
    for _ in range(PASSES if given.repair else 0):
        for finding in left:
            if finding.repair is not None:
                finding.repair()
        left = examine(given.min_age, digests=given.digests)
    _tell(found, left, as_json=given.json, repaired=given.repair)
    return 1 if left else 0


def _tell(found: list[Finding], left: list[Finding], *, as_json: bool, repaired: bool) -> None:
    told = [*found, *(finding for finding in left if finding not in found)]
    if as_json:
        listed = [{**{name: getattr(each, name) for name in _JSON}, "left": each in left} for each in told]
        print(json.dumps({"findings": listed, "found": len(found), "left": len(left)}, indent=2))  # noqa: T201
        return
    for each in told:
        can = each.repair is not None
        how = "repaired" if each not in left else "with --repair" if can and not repaired else "left"
        detail = f" ({each.detail})" if each.detail else ""
        print(f"{each.kind}  {each.subject}{detail}: {how}: {each.remedy}")  # noqa: T201
    print(f"{len(found)} found, {len(left)} left" if told else "all is well")  # noqa: T201


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lethe doctor")
    parser.add_argument("--repair", action="store_true")
    parser.add_argument("--digests", action="store_true")
    parser.add_argument("--min-age", type=float, required=True)
    parser.add_argument("--json", action="store_true")
    return parser


if __name__ == "__main__":
    # Standard output is what was found; what repairing logs goes beside it.
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    sys.exit(main())
