"""Where and how a worker computes."""

from __future__ import annotations

import os
import warnings

import torch


def choose_device(wanted: str) -> torch.device:
    """The device of that name; "auto" takes the first GPU if there is one."""
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(wanted)


def choose_dtype(device: torch.device) -> torch.dtype:
    """Type of the frozen base weights: bfloat16 on GPUs that have it, float32 elsewhere."""
    if device.type == "cuda" and torch.cuda.is_bf16_supported():
        return torch.bfloat16
    return torch.float32


def choose_threads(wanted: int) -> int:
    """CPU threads for torch: what was asked for, or half of the cores that this process may use.

    Never all of them by default: torch's threads wait for each other in a spin, so that one thread more than there
    are idle cores slows training by an order of magnitude. The number does not depend on the load of the moment,
    because another number of threads gives other rounding, and the same job must give the same bytes.
    """
    return wanted or max(1, len(os.sched_getaffinity(0)) // 2)


def set_up_torch(threads: int) -> None:
    """Fix the number of threads, and have torch compute the same numbers every time."""
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    # An operation without a deterministic form (there are some on GPUs) is used all the same, without a warning.
    warnings.filterwarnings("ignore", message=r".*does not have a deterministic implementation.*")


def empty_cache(device: torch.device) -> None:
    """Give memory that nothing uses any more back to the device, where another process may need it."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
