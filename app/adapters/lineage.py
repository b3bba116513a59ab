"""Which version came from which, through which run, for which jobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from app.adapters.repository import AdapterRepository
from app.adapters.schemas import LineageEdge, LineageJob, LineageNode, LineageRead
from app.adapters.tables import Adapter, AdapterVersion
from app.jobs.tables import UnlearnJob
from app.kit.pagination import encode_cursor


async def lineage(repository: AdapterRepository, adapter: Adapter, limit: int, cursor: str | None) -> LineageRead:
    """One page of an adapter's lineage, newest version first."""
    versions, more = await repository.version_page(adapter.id, limit, cursor)
    jobs = await repository.jobs_of(versions)
    digests = await repository.attestation_digests(versions)
    return LineageRead(
        adapter=adapter.name,
        head=adapter.head,
        nodes=[_node(version, jobs, digests) for version in versions],
        edges=[
            LineageEdge(source=version.source_version, result=version.number, run_id=version.run_id)
            for version in versions
            if version.source_version is not None
        ],
        has_more=more,
        next_cursor=encode_cursor(versions[-1].created_at, versions[-1].id) if more else None,
    )


def _node(version: AdapterVersion, jobs: Sequence[UnlearnJob], digests: Mapping[str, str]) -> LineageNode:
    mine = [job for job in jobs if job.run_id == version.run_id]
    return LineageNode.model_validate(
        {
            "version": version.number,
            "status": version.status,
            "run_id": version.run_id,
            "jobs": [_job(job) for job in mine],
            "weights_sha256": version.weights_sha256,
            "sha256": version.archive_sha256,
            "attestation_sha256": digests.get(version.id),
            "created_at": version.created_at,
            "superseded_at": version.superseded_at,
            "purged_at": version.purged_at,
        }
    )


def _job(job: UnlearnJob) -> LineageJob:
    return LineageJob.model_validate(
        {
            "id": job.id,
            "method": job.method["type"],
            "verdict": job.verdict,
            "subject_request_id": job.subject_request_id,
        }
    )
