"""Where the demo's inputs lie and where its results go."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

BASE_MODEL = "lethe-demo-base"


class DemoError(Exception):
    """Why the demo did not show what it should."""


@dataclass(frozen=True)
class DemoFiles:
    """The example folder: a tiny base model, one adapter trained on all records, one without the forget set."""

    root: Path

    @property
    def base(self) -> Path:
        """The base model."""
        return self.root / "base"

    @property
    def adapter(self) -> Path:
        """The adapter to unlearn from."""
        return self.root / "adapter"

    @property
    def control(self) -> Path:
        """The adapter that never saw the forget set."""
        return self.root / "control"

    def records(self, purpose: str) -> Path:
        """The records of one purpose."""
        return self.root / "data" / f"{purpose}.jsonl"


def find_files() -> DemoFiles:
    """The example folder of this installation, complete."""
    spec = importlib.util.find_spec("examples")
    if spec is None or spec.origin is None:
        raise DemoError("the examples are not installed; run the demo from a checkout")
    files = DemoFiles(Path(spec.origin).parent / "demo")
    needed = [files.base, files.adapter, files.control, *map(files.records, ("forget", "retain", "holdout"))]
    missing = [str(path) for path in needed if not path.exists()]
    if missing:
        raise DemoError(f"the demo lacks {', '.join(missing)}")
    return files
