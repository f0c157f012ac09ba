"""The explorer in a real browser without a notebook: its script speaks with its Python through the browser's pipe."""

import base64
import json
from pathlib import Path

from browser import Tab

from whisper_sae.explorer.notebook_widget import Explorer

PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>a notebook</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>%s body { margin: 8px; background: %s; }</style></head>
<body><main id="here"></main><script type="application/json" id="esm">%s</script><script type="module">
const text = (data) => btoa(Array.from(new Uint8Array(data), (one) => String.fromCharCode(one)).join(""));
const listeners = new Set();
window.heard = (message) => { for (const one of [...listeners]) one(message, []); };
const model = { on: (_, hear) => listeners.add(hear), off: (_, hear) => listeners.delete(hear),
  send: (content, _, buffers = []) => toPython(JSON.stringify({ content, buffers: buffers.map(text) })) };
const esm = JSON.parse(document.getElementById("esm").textContent);
const told = await import(URL.createObjectURL(new Blob([esm], { type: "text/javascript" })));
window.leave = await told.default.render({ model, el: document.getElementById("here") });
</script></body></html>"""


def opened(tab: Tab, widget: Explorer, folder: Path, width: int, ground: str = "#fff") -> list[dict]:
    """Open a page with the widget, and wait until it shows something; returns the questions, as they come."""
    asked = []
    esm = json.dumps(widget._esm).replace("<", "\\u003c")
    path = folder / "page.html"
    path.write_text(PAGE % (widget._css, ground, esm), encoding="utf-8")

    def answer(payload: str) -> str:
        told = json.loads(payload)
        asked.append(told["content"])
        data = b"".join(base64.b64decode(part) for part in told["buffers"])
        message = {"id": told["content"]["id"], "answer": widget.answer(told["content"]["question"], data)}
        return f"window.heard({json.dumps(message, allow_nan=False)})"

    tab.bind("toPython", answer)
    tab.open(path.as_uri(), width)
    tab.until("document.querySelector('.whisper-explorer .example, .whisper-explorer .status.wrong')")
    return asked
