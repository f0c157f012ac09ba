"""A real Chromium without a window, driven through a pipe: no server, no port, and nothing to install beside it."""

import contextlib
import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-quic", "--disable-component-update", "--disable-sync", "--remote-debugging-pipe",
         "--autoplay-policy=no-user-gesture-required", "--host-resolver-rules=MAP * ~NOTFOUND"]  # fmt: skip


class Tab:
    """One page; `said` is what it wrote to the console, faults of its scripts included."""

    def __init__(self, ask, answers):
        self.ask, self.answers, self.said, self.number, self.session = ask, answers, [], 0, None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for part in ("Page", "Runtime", "Log"):
            self.call(f"{part}.enable")

    def call(self, method: str, **params) -> dict:
        """What the DevTools protocol answers."""
        self.number += 1
        told = {"id": self.number, "method": method, "params": params}
        self._tell(told | ({"sessionId": self.session} if self.session else {}))
        while (answer := self._hear()).get("id") != self.number:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def open(self, url: str, width: int, height: int = 900) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Page.navigate", url=url)
        while self._hear().get("method") != "Page.loadEventFired":
            pass

    def run(self, script: str):
        """The value of an expression, awaited where it is a promise."""
        answer = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def _tell(self, message: dict) -> None:
        self.ask.write(json.dumps(message).encode() + b"\0")
        self.ask.flush()

    def _hear(self) -> dict:
        data = bytearray()
        while (letter := self.answers.read(1)) != b"\0":
            assert letter, "the browser has gone"
            data += letter
        message = json.loads(data)
        if message.get("method") in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
            self.said.append(message["params"])
        return message


@contextlib.contextmanager
def tab(home: Path) -> Iterator[Tab]:
    """A page of a browser of its own, which keeps its files in a folder."""
    to_read, ask = os.pipe()
    answers, to_write = os.pipe()
    command = shlex.join([CHROMIUM, *FLAGS, f"--user-data-dir={home}/browser", "about:blank"])
    process = subprocess.Popen(
        ["bash", "-c", f"exec {command} 3<&{to_read} 4>&{to_write}"], pass_fds=(to_read, to_write),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "HOME": str(home)},
    )  # fmt: skip
    os.close(to_read)
    os.close(to_write)
    try:
        with os.fdopen(ask, "wb") as writes, os.fdopen(answers, "rb") as reads:
            yield Tab(writes, reads)
    finally:
        process.terminate()
        process.wait(timeout=20)
