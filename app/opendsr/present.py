"""The outside view of requests."""

from __future__ import annotations

from app.opendsr.schemas import JobState, ProcessorExtension, StatusCallback, StatusRead
from app.opendsr.service import View


def present_status(view: View, domain: str) -> StatusRead:
    """Where a request stands, as the specification words it; `domain` keys what we add."""
    request = view.request
    jobs = [JobState(id=job.id, adapter=adapter, status=job.status) for job, adapter in view.jobs]
    return StatusRead(
        controller_id=request.tenant_id,
        expected_completion_time=view.due_at,
        subject_request_id=request.subject_request_id,
        request_status=view.status,
        api_version=request.api_version,
        results_count=request.results_count,
        extensions={domain: ProcessorExtension(jobs=jobs)},
    )


def present_callback(view: View, domain: str, url: str) -> StatusCallback:
    """The same for a callback."""
    return StatusCallback(**dict(present_status(view, domain)), status_callback_url=url)
