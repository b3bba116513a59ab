"""Every code that an error carries: what it means and what to do about it.

The one place for codes. A new subclass of `app.kit.problems.Problem`, or a new code of a failed job, needs an entry
here and `make docs`; the pages at `/problems/{code}` and docs/api/problems.md come from it.
"""

from __future__ import annotations

from dataclasses import dataclass

from app.kit.problems import title_of


@dataclass(frozen=True)
class Code:
    """What one code stands for.

    Attributes:
        status: of the answers that carry the code; None when only the `error` of a failed job does.
        of_jobs: whether a failed job's `error` may carry it.
    """

    code: str
    status: int | None
    meaning: str
    remedy: str
    of_jobs: bool = False

    @property
    def title(self) -> str:
        """The code in words."""
        return title_of(self.code)


def _answer(code: str, status: int, meaning: str, remedy: str) -> Code:
    return Code(code, status, meaning, remedy)


def _job(code: str, meaning: str, remedy: str) -> Code:
    return Code(code, None, meaning, remedy, of_jobs=True)


_ANSWERS = (
    _answer(
        "bad_request",
        400,
        "The body cannot be read, such as malformed multipart, or the connection broke while it arrived.",
        "Send the body again, in the form that the call describes.",
    ),
    _answer(
        "unauthenticated",
        401,
        "The request carries no valid credentials.",
        "Send a key or token that is known, not revoked and not expired as `Authorization: Bearer ...`.",
    ),
    _answer(
        "forbidden",
        403,
        "The credentials are valid and do not allow this call.",
        "Use a key with one of the scopes that `WWW-Authenticate` names.",
    ),
    _answer(
        "own_request",
        403,
        "The key submitted the job, so that another one has to approve or deny it.",
        "Have a colleague decide, with a key of their own.",
    ),
    _answer(
        "not_found",
        404,
        "There is no such thing. What belongs to another tenant is not found either.",
        "Check the path, and the id or name in it, and that the key belongs to the right tenant.",
    ),
    _answer(
        "method_not_allowed",
        405,
        "The path is there, and takes other methods.",
        "The `Allow` header and `GET /openapi.json` tell which.",
    ),
    _answer(
        "conflict",
        409,
        "The state of things does not allow it. `detail` says which state.",
        "Wait for the state to change, or change it, then send the request again.",
    ),
    _answer(
        "duplicate_request",
        409,
        "The person's request (`subject_request_id`) has a job on this adapter that is live or has succeeded.",
        "Follow that job: `detail` gives its id and `Location` its path.",
    ),
    _answer(
        "idempotency_key_in_use",
        409,
        "The first request under this `Idempotency-Key` has not been answered yet.",
        "Send the same request again after `Retry-After` seconds.",
    ),
    _answer(
        "gone",
        410,
        "It was there and is no longer handed out: superseded by an unlearned version, or purged.",
        "Download the adapter's `head` instead.",
    ),
    _answer(
        "too_large",
        413,
        "The body, a line of it, or the number of records exceeds a limit, which `detail` gives.",
        "Split the dataset, or upload it instead of sending the records inline.",
    ),
    _answer(
        "unsupported_media_type",
        415,
        "The call does not take bodies of this content type.",
        "Send one of the types that `detail` names.",
    ),
    _answer(
        "range_not_satisfiable",
        416,
        "The range lies outside of the file.",
        "`Content-Range` gives the file's size; ask for a range within it.",
    ),
    _answer(
        "invalid_request",
        422,
        "The request is understood and cannot be accepted: a field is missing, unknown, or out of its range.",
        "Correct what `errors` names; each `pointer` is a JSON Pointer into the request.",
    ),
    _answer(
        "cannot_retrain",
        422,
        "The adapter cannot be trained anew without the records; `detail` says why: it has no training set, none of "
        "the records is in it, nothing would be left, or that would bring back what an earlier job unlearned.",
        'Unlearn instead: leave `method` out, or ask for `{"type": "auto"}`.',
    ),
    _answer(
        "idempotency_key_reused",
        422,
        "The `Idempotency-Key` came with another request before.",
        "Take a new key for a new request; send the old request unchanged to get its answer again.",
    ),
    _answer(
        "rate_limited",
        429,
        "More requests than the limit allows: per key for reads and for writes, per address for wrong keys.",
        "Send the request again after `Retry-After` seconds; `RateLimit-Policy` gives the limit.",
    ),
    _answer(
        "quota_exceeded",
        429,
        "As many jobs as the tenant may have at a time have not ended, or as many event streams are open as may be.",
        "Wait for jobs to end, or cancel some; close streams, or poll; then send the request again.",
    ),
    Code(
        "internal_error",
        500,
        "Something broke on the side of the service. The cause is in its log and never in the answer.",
        "Report it with the `request_id`, or with the job's id: the log names the place.",
        of_jobs=True,
    ),
    _answer(
        "unavailable",
        503,
        "A part of the service is down, such as its database.",
        "Send the same request again after `Retry-After` seconds.",
    ),
)
_JOBS = (
    _job("adapter_missing", "The bytes of the adapter's head are no longer held.", "Upload the adapter again."),
    _job(
        "adapter_unusable",
        "The adapter does not load on its base model, or holds values that are not finite.",
        "Check the adapter with PEFT on the same base model; upload one that loads.",
    ),
    _job(
        "dataset_unreadable",
        "A set was purged, or its key is missing.",
        "Upload the records again and submit a new job; or give the workers every key of `LETHE_ENCRYPTION_KEYS`.",
    ),
    _job(
        "denied",
        "Somebody denied the approval that the job waited for; `approval` says when, by which key and why.",
        "Settle it with whoever denied it. A retry asks for approval again.",
    ),
    _job(
        "evaluation_failed",
        "The process that judges the result broke; the message gives its exit status or the place.",
        "Retry the job. If it happens again, look into the worker's log.",
    ),
    _job(
        "evaluation_timeout",
        "A probe of the evaluation took longer than `LETHE_PROBE_SECONDS`.",
        "Ask for a policy with fewer probes, or raise the setting on the workers; then retry.",
    ),
    _job("head_moved", "The adapter got a new version meanwhile.", "Retry the job: it starts from the new head."),
    _job(
        "library_missing",
        "The worker is set to hold base models in four bits and has no bitsandbytes.",
        "Install `lethe[four-bit]` on the workers, or set `LETHE_FOUR_BIT` to false; then retry.",
    ),
    _job(
        "model_unusable",
        "The worker cannot load the base model's directory.",
        "Check that the directory is mounted on the worker as it was when the model was registered; then retry.",
    ),
    _job(
        "out_of_memory",
        "Even single sequences do not fit into the worker's memory.",
        "Set `method.gradient_checkpointing`, lower `method.max_length`, or run workers with `LETHE_FOUR_BIT`.",
    ),
    _job(
        "record_unusable",
        "A record cannot be encoded; the message gives its number.",
        "Correct or leave out that record, upload the set again, and submit a new job.",
    ),
    _job(
        "signing_key_missing",
        "The worker has no `LETHE_SIGNING_KEY`, and nothing is released unsigned.",
        "Set the key on the GPU workers and retry.",
    ),
    _job(
        "training_set_empty",
        "Nothing is left of the adapter's training set without the records to forget.",
        "Submit a new job that unlearns: leave `method` out.",
    ),
    _job(
        "training_set_missing",
        "The service holds no training set of the adapter any more: it was let go of after the job was accepted.",
        "Submit a new job that unlearns: leave `method` out.",
    ),
    _job(
        "training_set_stale",
        "A job that ended meanwhile has unlearned records which were not found in the training set; training anew "
        "would bring them back.",
        "Submit a new job that unlearns: leave `method` out.",
    ),
    _job(
        "unlearning_failed",
        "Training became unstable; the message gives the step.",
        "Submit a new job with a lower `method.learning_rate`, or with the defaults.",
    ),
    _job(
        "worker_lost",
        "Several workers died while they had the run.",
        "Look into the workers' logs and memory; then retry the job.",
    ),
)
CODES: dict[str, Code] = {code.code: code for code in (*_ANSWERS, *_JOBS)}
"""By code: those of answers in the order of their status, then those that only failed jobs carry."""
