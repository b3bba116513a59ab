"""How far a download is: a moving bar on a terminal, plain lines elsewhere."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as Bar

from app.fetching import Show

LARGE = 50 * 1024**2  # bytes; what is smaller needs no lines


@contextmanager
def shown(console: Console) -> Iterator[Show]:
    """What to tell of the progress, while the block lasts."""
    if not console.is_terminal:
        yield PlainTransfer(console)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=console) as bar:
        yield LiveTransfer(bar)


class PlainTransfer:
    """A line where a download goes on, and one for each tenth of a large one."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._tenth = 0
        self._told = 0

    def __call__(self, done: int, total: int, resumed: int) -> None:
        """Print only what is new."""
        if resumed and resumed != self._told:
            self._told = resumed
            self._console.print(f"going on after {resumed} of {total} bytes")
        tenth = done * 10 // max(total, 1)
        if total >= LARGE and tenth > self._tenth:
            self._tenth = tenth
            self._console.print(f"{tenth * 10} %  {done} of {total} bytes")


class LiveTransfer:
    """A moving bar."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar
        self._task = bar.add_task("download", total=None)

    def __call__(self, done: int, total: int, resumed: int) -> None:
        """Move the bar."""
        words = "download (resumed)" if resumed else "download"
        self._bar.update(self._task, completed=done, total=total, description=words)
