"""Drives a headless Chromium through a pipe, in the protocol of its developer tools.

Its console cannot be read in another way: on stderr an error looks like any other line. A message
of the protocol is JSON that ends with a NUL byte:
https://chromedevtools.github.io/devtools-protocol/
"""

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
WORDS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--window-size=1400,1200",
    "--remote-debugging-pipe",
)
SETTLE_SECONDS = 0.3  # in which late errors of a page arrive
PATIENCE_SECONDS = 90
# Chromium reads commands from file descriptor 3 and writes answers to 4.
START = 'exec "$@" 3<&"$COMMANDS" 4>&"$ANSWERS"'


class Browser:
    """One page of a running Chromium."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands = commands
        self._answers = answers
        self._unread = b""
        self._number = 0
        self._session: str | None = None
        self.errors: list[str] = []
        """Errors of the console since the page was opened: exceptions, failed requests, messages."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Sends a command and returns its answer. Events that come before the answer are noted."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive(timeout=60)
            assert answer is not None, f"Chromium does not answer {method}"
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            self._note(answer)

    def open(self, address: str) -> None:
        """Opens a page. What it shows may still be loaded: see `wait_for`."""
        # A page that differs in its #fragment only would not be loaded again.
        self.call("Page.navigate", url="about:blank")
        self.settle()
        self.errors.clear()
        answer = self.call("Page.navigate", url=address)
        assert "errorText" not in answer, answer

    def evaluate(self, expression: str) -> Any:
        """Returns the value of a JavaScript expression in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        return answer["result"].get("value")

    def text(self) -> str:
        """Returns the text that the page shows."""
        return self.evaluate("document.body ? document.body.innerText : ''")

    def wait_for(self, *texts: str) -> None:
        """Waits until the page shows all of these texts."""
        for text in texts:
            self.wait_until(f"document.body?.innerText.includes({json.dumps(text)})")

    def wait_until(self, condition: str) -> None:
        """Waits until a JavaScript expression is true. Notes what happens for a moment longer."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not self.evaluate(condition):
            shown = f"errors: {self.errors}\n{self.text()}"
            assert time.monotonic() < deadline, f"{condition} does not hold on the page; {shown}"
            self.settle()
        self.settle()

    def settle(self) -> None:
        """Notes what happens within a moment."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < deadline:
            event = self._receive(deadline - time.monotonic())
            if event is not None:
                self._note(event)

    def screenshot(self, path: Path) -> None:
        """Writes what the page shows as a PNG file."""
        answer = self.call("Page.captureScreenshot")
        path.write_bytes(base64.b64decode(answer["data"]))

    def _receive(self, timeout: float) -> dict[str, Any] | None:
        """Returns the next message, or None if none comes in time."""
        deadline = time.monotonic() + timeout
        while b"\0" not in self._unread:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._answers], [], [], left)[0]:
                return None
            part = os.read(self._answers, 1 << 16)
            assert part, "Chromium has ended"
            self._unread += part
        message, _, self._unread = self._unread.partition(b"\0")
        return json.loads(message)

    def _note(self, event: dict[str, Any]) -> None:
        """Keeps an event if it is an error of the page."""
        details = event.get("params", {})
        method = event.get("method")
        if method == "Runtime.exceptionThrown":
            thrown = details["exceptionDetails"]
            self.errors.append(thrown.get("exception", {}).get("description", thrown["text"]))
        elif method == "Runtime.consoleAPICalled" and details["type"] in ("error", "assert"):
            words = [word.get("value", word.get("description", "")) for word in details["args"]]
            self.errors.append(" ".join(map(str, words)))
        elif method == "Log.entryAdded" and details["entry"]["level"] == "error":
            entry = details["entry"]
            self.errors.append(f"{entry['text']} ({entry.get('url', '')})")


@contextmanager
def browser() -> Iterator[Browser]:
    """Starts Chromium with a profile of its own, and ends it."""
    here_reads, there_writes = os.pipe()
    there_reads, here_writes = os.pipe()
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            ["bash", "-c", START, "bash", CHROMIUM, *WORDS, f"--user-data-dir={profile}"],
            env=os.environ | {"COMMANDS": str(there_reads), "ANSWERS": str(there_writes)},
            pass_fds=(there_reads, there_writes),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(there_reads)
        os.close(there_writes)
        try:
            yield Browser(here_writes, here_reads)
        finally:
            os.close(here_writes)  # Chromium ends when nobody can tell it anything any more
            os.close(here_reads)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
