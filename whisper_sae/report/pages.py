"""Turns an executed notebook into a page that needs nothing but a browser.

A rendered notebook is what most readers will ever see of a run, and it may be opened years later, offline,
on a phone. So a page carries its style, its figures and its sounds, and forbids the browser to ask any
other host for anything; formulas become MathML; what came from data is escaped. The templates, the style
and the script are files in `report/templates`.
"""

import base64
import copy
import io
import re
from functools import cache
from html import escape

import latex2mathml.converter
from bs4 import BeautifulSoup
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from nbconvert.exporters import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from PIL import Image

from whisper_sae.report.template import POLICY, TEMPLATE

FIGURE = re.compile(r'<img\b[^>]*src="data:image/(?:png|jpeg);base64,([^"]+)"[^>]*>')
NOTEBOOK = re.compile(r"(?:\./)?(\d\d_\w+)\.(?:ipynb|py)((?:#.*)?)$")
BRIEF = ("You will", "You will learn", "You need", "Time")


def title(node) -> str:
    """The text after `# ` that opens a notebook, such as `2 · How sparse?`; empty if there is none."""
    for cell in node.cells:
        found = re.search(r"^# +(.+)$", cell.source, re.M) if cell.cell_type == "markdown" else None
        if found:
            return found[1].strip()
    return ""


def page(node, row: dict, run: dict, titles: dict[str, str]) -> str:
    """One HTML page of an executed notebook, as `readable.prepared` leaves it.

    `row` says how this notebook was run (name, title, headline, error, tables, steps, seed, commit, dirty,
    date, device, seconds); `run` names the profile (profile, banner); `titles` are those of all notebooks
    that have a page, this one too, by name and in order.
    """
    soup = _body(node)
    _link_pages(soup, titles)
    names = list(titles)
    at = names.index(row["name"])
    earlier, later = names[:at][-1:], names[at + 1 :][:1]
    _drop_opening(soup, keep_quote=not (row.get("headline") or row.get("error")))
    return _render(
        "page.html.j2",
        row=row,
        run=run,
        earlier=[_titled({"href": f"{name}.html", "title": titles[name]}) for name in earlier],
        later=[_titled({"href": f"{name}.html", "title": titles[name]}) for name in later],
        **_titled(row),
        entries=_contents(soup, tables=bool(row.get("tables"))),
        has_error_cell=soup.find(id="error") is not None,
        body=Markup(soup),
    )


def index(rows: list[dict], run: dict) -> str:
    """The page that lists the notebooks: a card each, then a glossary, then how it was made.

    A row has number, name, title and status, and where known href, headline, error, seconds, thumbnail and
    thumbnail_alt; `run` has profile, about, banner, seed, commit, dirty, date, device, seconds and versions.
    """
    return _render("index.html.j2", rows=[_titled(row) for row in rows], run=run)


def thumbnail(node, width: int = 480) -> tuple[str, str]:
    """The first figure of a notebook, made small, as (data URL, alt); two empty strings if there is none."""
    for output in (o for cell in node.cells for o in cell.get("outputs", [])):
        data = output.get("data", {})
        found = re.search(r'<img\b[^>]*src="data:image/(?:png|jpeg);base64,([^"]+)"[^>]*>', data.get("text/html", ""))
        if found:
            alt = BeautifulSoup(found[0], "html.parser").img.get("alt", "")
            return _small(found[1], width), alt or "The first figure of the notebook"
        if "image/png" in data:
            return _small(data["image/png"], width), "The first figure of the notebook"
    return "", ""


def duration(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


# --- from cells to HTML


def _body(node) -> BeautifulSoup:
    exporter = HTMLExporter(
        template_name=TEMPLATE.name,
        extra_template_basedirs=[str(TEMPLATE.parent)],
        template_file="cells.html.j2",
        filters={"markdown2html": _markdown},
    )
    html, _ = exporter.from_notebook_node(node)
    soup = BeautifulSoup(html, "html.parser")
    _stay_at_home(soup)
    _fit_to_width(soup)
    _list_brief(soup)
    _anchor_headings(soup)
    _unrepeat_ids(soup)
    return soup


class _Renderer(IPythonRenderer):
    """Markdown to HTML, with formulas as MathML: nothing to download, and screen readers can say it."""

    def inline_math(self, body):
        return _mathml(body, "inline")

    def block_math(self, body):
        return _mathml(body, "block")

    def latex_environment(self, name, body):
        return _mathml(f"\\begin{{{name}}}{body}\\end{{{name}}}", "block")


def _markdown(source: str) -> str:
    return MarkdownWithMath(renderer=_Renderer(escape=False, exclude_anchor_links=True)).render(source)


def _mathml(formula: str, display: str) -> str:
    try:
        return latex2mathml.converter.convert(formula, display=display)
    except Exception:  # whatever it cannot read is shown as it was written
        return f"<code>{escape(formula)}</code>"


def _inline(markdown: str) -> Markup:
    """A title: `code`, emphasis and formulas as in the notebook; raw HTML is escaped."""
    html = MarkdownWithMath(renderer=_Renderer(escape=True, exclude_anchor_links=True)).render(markdown).strip()
    return Markup(html.removeprefix("<p>").removesuffix("</p>"))


def _titled(row: dict) -> dict:
    """With its title as HTML, and as the plain text that a browser's tab can show."""
    html = _inline(row["title"])
    return {**row, "title_html": html, "title_text": BeautifulSoup(html, "html.parser").get_text()}


# --- from HTML to a page


def _stay_at_home(soup) -> None:
    """Take out what would make a browser ask another host; the page's policy forbids it as well."""
    for tag in soup.select("link, iframe, object, embed, base, script[src], style"):
        tag.decompose()
    for tag in soup.select("[src], [srcset], [poster]"):
        for name in ("src", "srcset", "poster"):
            if name in tag.attrs and not tag[name].startswith(("data:", "#")):
                tag.replace_with(f"[{tag.get('alt') or tag.name}]")
                break


def _fit_to_width(soup) -> None:
    """Tables and figures in boxes of their own that scroll, so that a phone never scrolls the page sideways."""
    for table in soup.find_all("table"):
        del table["border"]
        for cell in table.select("[style*='text-align']"):
            if "right" in cell["style"]:
                cell["class"] = [*cell.get("class", []), "number"]
            del cell["style"]
        for cell in table.find_all("td"):
            if len(cell.get_text()) > 40:
                cell["class"] = [*cell.get("class", []), "long"]
    for wide in soup.select("table, figure.plot > img"):
        if not wide.find_parent(class_="scroll"):
            wide.wrap(soup.new_tag("div", attrs={"class": "scroll"}))


def _list_brief(soup) -> None:
    """**You will** …, **You will learn** …, **You need** …, **Time** … as a list of terms."""
    for paragraph in soup.find_all("p"):
        strong = [tag for tag in paragraph.find_all("strong", recursive=False) if tag.get_text() in BRIEF]
        if not strong or paragraph.contents[0] is not strong[0]:
            continue
        terms = soup.new_tag("dl", attrs={"class": "brief"})
        for child in list(paragraph.contents):
            if any(child is tag for tag in strong):
                term = soup.new_tag("dt")
                term.string = child.get_text()
                terms.append(term)
                terms.append(soup.new_tag("dd"))
            else:
                terms.contents[-1].append(child.extract())
        earlier = paragraph.find_previous_sibling()
        if earlier is not None and "brief" in earlier.get("class", []):
            for child in list(terms.contents):
                earlier.append(child.extract())
            paragraph.decompose()
        else:
            paragraph.replace_with(terms)


def _anchor_headings(soup) -> None:
    """A stable, unique id on each heading, and a permalink that can be seen and reached."""
    taken = {"main", "tables-of-this-page"} | {tag["id"] for tag in soup.find_all(id=True)}
    for heading in soup.find_all(["h2", "h3", "h4"]):
        text = " ".join(heading.get_text().split())
        slug = re.sub(r"[^\w]+", "-", text.lower()).strip("-") or "section"
        unique, count = slug, 2
        while unique in taken:
            unique, count = f"{slug}-{count}", count + 1
        taken.add(unique)
        heading["id"] = unique
        link = {"class": "permalink", "href": f"#{unique}", "aria-label": f"Link to the section {text}"}
        heading.append(" ")
        heading.append(soup.new_tag("a", attrs=link, string="¶"))


def _link_pages(soup, titles) -> None:
    """A link to another notebook leads to its page, or, as long as it has none, to its place in the index."""
    for link in soup.find_all("a", href=NOTEBOOK):
        name, part = NOTEBOOK.fullmatch(link["href"]).groups()
        link["href"] = f"{name}.html{part}" if name in titles else f"index.html#{name}"


def _unrepeat_ids(soup) -> None:
    seen = {"main", "tables-of-this-page"}
    for tag in soup.find_all(id=True):
        if tag["id"] in seen:
            del tag["id"]
        else:
            seen.add(tag["id"])


def _drop_opening(soup, keep_quote: bool) -> None:
    """Title and answer go to the head of the page; the answer is what the run found, not what was typed."""
    heading = soup.find("h1")
    if heading is None:
        return
    quote = heading.find_next_sibling()
    heading.decompose()
    if quote is not None and quote.name == "blockquote":
        if keep_quote:
            quote["class"] = "headline"
        else:
            quote.decompose()


def _contents(soup, tables: bool) -> list[dict]:
    entries = []
    for heading in soup.find_all(["h2", "h3"]):
        label = copy.copy(heading)
        label.find(class_="permalink").decompose()
        for link in label.find_all("a"):
            link.unwrap()
        html = Markup(label.decode_contents().strip())
        entries.append({"level": heading.name[1], "id": heading["id"], "html": html})
    if tables:
        entries.append({"level": "2", "id": "tables-of-this-page", "html": "Tables of this page"})
    return entries


def _small(picture: str, width: int) -> str:
    image = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGBA")
    paper = Image.new("RGBA", image.size, "white")
    image = Image.alpha_composite(paper, image).convert("RGB")
    image.thumbnail((width, width))
    out = io.BytesIO()
    image.quantize(64).save(out, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


@cache
def _environment() -> Environment:
    environment = Environment(loader=FileSystemLoader(TEMPLATE), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["duration"] = duration
    for name, file in {"style": "style.css", "script": "script.js"}.items():
        environment.globals[name] = Markup((TEMPLATE / file).read_text(encoding="utf-8"))
    environment.globals["policy"] = POLICY
    return environment


def _render(template: str, **values) -> str:
    return _environment().get_template(template).render(**values)
