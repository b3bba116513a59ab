"""What the person at the terminal sees: every process's lines with a short coloured prefix."""

import threading

from rich.console import Console
from rich.text import Text

STYLES = {
    "lethe": "bold",
    "api": "green",
    "gpu": "magenta",
    "light": "cyan",
    "redis": "red",
    "postgres": "blue",
}


class Terminal:
    """Prints whole lines from several threads."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False, soft_wrap=True)
        self._lock = threading.Lock()

    def line(self, name: str, text: str) -> None:
        """One line of process `name`, unless it is blank; markup in it stays text."""
        if not text.strip():
            return
        prefix = Text(f"{name:>8} │ ", style=STYLES.get(name, ""))
        with self._lock:
            self._console.print(prefix + Text.from_ansi(text))

    def say(self, text: str) -> None:
        """One line of the supervisor itself."""
        self.line("lethe", text)

    def banner(self, text: str) -> None:
        """A block without a prefix, so that commands in it can be copied."""
        with self._lock:
            self._console.print(Text(f"\n{text}\n"))
