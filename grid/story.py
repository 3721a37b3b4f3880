"""How a demonstration is told: chapters, sentences, the lines of code that run, and checks of what came out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.markup import escape

from grid import show


@dataclass(slots=True)
class Story:
    """What is said on the way, and what was found out. Silent where only the figures are wanted."""

    is_silent: bool
    figures: dict[str, Any] = field(default_factory=dict)
    checks: list[dict[str, Any]] = field(default_factory=list)
    chapter: int = 0
    console: Console = field(default_factory=show.out)

    def begin(self, title: str) -> None:
        self.chapter += 1
        self._print(f"\n[bold]{self.chapter}. {escape(title)}[/bold]")

    def say(self, *sentences: str) -> None:
        for sentence in sentences:
            self._print(f"   {escape(sentence)}")

    def code(self, *lines: str) -> None:
        for line in lines:
            self._print(f"   [cyan]>>> {escape(line)}[/cyan]")

    def show(self, table: Any) -> None:
        if not self.is_silent:
            self.console.print(table)

    def check(self, what: str, is_right: bool, found: str = "") -> None:
        """A result beside what it must be."""
        self.checks.append({"what": what, "ok": bool(is_right), "found": found})
        mark = "[green]ok[/green]  " if is_right else "[red]WRONG[/red]"
        self._print(f"   {mark} {escape(what)}" + (f": {escape(found)}" if found else ""))

    @property
    def is_right(self) -> bool:
        return all(check["ok"] for check in self.checks)

    def _print(self, text: str) -> None:
        if not self.is_silent:
            self.console.print(text, soft_wrap=True)
