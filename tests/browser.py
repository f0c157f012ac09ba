"""A real Chromium without a window, driven through a pipe: no server, no port, and nothing to install beside it."""

import base64
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
        self.bound = {}
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for part in ("Page", "Runtime", "Log"):
            self.call(f"{part}.enable")

    def call(self, method: str, **params) -> dict:
        """What the DevTools protocol answers."""
        mine = self._say(method, params)
        while (answer := self._hear()).get("id") != mine:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def _say(self, method: str, params: dict) -> int:
        self.number += 1
        told = {"id": self.number, "method": method, "params": params}
        self._tell(told | ({"sessionId": self.session} if self.session else {}))
        return self.number

    def bind(self, name: str, answer) -> None:
        """Give pages a function: what it is called with goes to `answer`, and what that returns is run in the page."""
        self.bound[name] = answer
        self.call("Runtime.addBinding", name=name)

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

    def until(self, expression: str, seconds: float = 60) -> None:
        """Wait for something to be true in the page."""
        script = f"""(async () => {{ for (const end = Date.now() + {1000 * seconds}; Date.now() < end;) {{
            try {{ if ({expression}) return true; }} catch {{}}
            await new Promise((done) => setTimeout(done, 25)); }} return false; }})()"""
        assert self.run(script), f"never came true: {expression}; the page said {self.said[-3:]!s:.800}"

    def click(self, selector: str) -> None:
        """Click in the middle of an element, as a hand does."""
        x, y = self.run(f"""(() => {{ const one = document.querySelector({selector!r});
            one.scrollIntoView({{ block: "center", behavior: "instant" }}); const box = one.getBoundingClientRect();
            return [box.x + box.width / 2, box.y + box.height / 2]; }})()""")
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str, code: int = 0) -> None:
        """Press a key, such as Tab, 9, or ArrowRight, 39."""
        text = {"Enter": "\r", " ": " "}.get(key)
        told = {"key": key, "code": key, "windowsVirtualKeyCode": code} | ({"text": text} if text else {})
        self.call("Input.dispatchKeyEvent", type="keyDown", **told)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, code=key, windowsVirtualKeyCode=code)

    def write(self, selector: str, text: str) -> None:
        """Put text into a field, as typing does."""
        self.run(f"(() => {{ const one = document.querySelector({selector!r}); one.focus(); one.select?.(); }})()")
        if text:
            self.call("Input.insertText", text=text)
        else:
            self.press("Delete", 46)

    def choose_file(self, selector: str, path: Path) -> None:
        """Give a file to a field for files."""
        found = self.call("Runtime.evaluate", expression=f"document.querySelector({selector!r})")
        self.call("DOM.setFileInputFiles", files=[str(path)], objectId=found["result"]["objectId"])

    def picture(self, path: Path) -> None:
        """Keep what the page looks like, all of it, as a PNG."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], 6000), "scale": 1}
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)["data"]
        path.write_bytes(base64.b64decode(data))

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
        if message.get("method") == "Runtime.bindingCalled":
            script = self.bound[message["params"]["name"]](message["params"]["payload"])
            self._say("Runtime.evaluate", {"expression": script})
        return message


@contextlib.contextmanager
def tab(home: Path, *flags: str) -> Iterator[Tab]:
    """A page of a browser of its own, which keeps its files in a folder; `flags` come after FLAGS."""
    to_read, ask = os.pipe()
    answers, to_write = os.pipe()
    command = shlex.join([CHROMIUM, *FLAGS, *flags, f"--user-data-dir={home}/browser", "about:blank"])
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
