"""Where the templates of pages lie, and what a page lets a browser do: for whatever writes a page."""

from pathlib import Path

TEMPLATE = Path(__file__).with_name("templates")

POLICY = (
    "default-src 'none'; img-src data:; media-src data: blob:; font-src data:; "
    "style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
)
