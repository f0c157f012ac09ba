"""A run end to end: small notebooks are really executed, rendered, and read as a browser would read them."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import html5lib
import pytest
from bs4 import BeautifulSoup

from whisper_sae import __main__, progress
from whisper_sae.report import pages, pairing, provenance, readable, runner

HOSTILE = '</title><script>alert(1)</script><img src=x onerror="alert(2)"> & "quoted"'
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="

LISTEN = f"""
# %% [markdown]
# # 1 · What does a layer keep of $x$?
#
# > Typed by hand: 99 features.
#
# **You will** listen.
# **You will learn** to read `FVU`.
# **You need** nothing.
# **Time** demo 1 s.

# %% tags=["parameters"]
profile = "demo"  # which profile
seed = 0
steps = 3
rate = 0.5

# %% tags=["setup"]
import json, os, sys, time, warnings
from pathlib import Path
from IPython.display import HTML, display
from tqdm import tqdm
from whisper_sae import profiles
from whisper_sae.report import results

# %% [markdown]
# ## Same heading
#
# A formula $\\hat x = f W_{{\\text{{dec}}}}$, one apart $$\\frac{{a}}{{b}}$$ and [a paper](https://arxiv.org/abs/2406.04093).
#
# ![not fetched](https://example.org/x.png)
#
# | site | FVU |
# |---|---:|
# | a | 0.1 |
#
# <aside class="doubt">
#
# **What would change my mind.** Chance.
#
# </aside>
#
# ## Same heading
#
# See [3](03_last.ipynb) and [9](09_never.ipynb).

# %%
for _ in tqdm(range(20), desc="extracting"):
    time.sleep(0.001)
print("plain", "<b>words</b>")
print("loading: 100%|##########| 2/2 [00:00<00:00, 9.1it/s]", file=sys.stderr)
warnings.warn("the <clock> is slow")

# %% tags=["show-code"]
shown = "always"

# %% tags=["hide-input", "figure"]
display(HTML('<figure class="plot"><img alt="A point." src="data:image/png;base64,{PIXEL}">'
             '<figcaption id="twice">One.</figcaption></figure><p id="twice">two</p>'))

# %%
display(HTML('<link rel="stylesheet" href="https://example.org/a.css"><script src="//example.org/a.js"></script>'))
import pandas as pd
pd.DataFrame({{"site": ["<i>"], "FVU": [0.5]}})

# %%
(steps, rate, seed)

# %% tags=["save"]
results.save("01_listen", profiles.choose(profile).name, {HOSTILE!r}, {{"sizes": pd.DataFrame({{"k": [1]}})}})
"""

FAIL = """
# %% [markdown]
# # 2 · Does it stop?

# %% tags=["parameters"]
profile = "demo"
seed = 0

# %%
raise ValueError("no <b>clips</b> & no 'speech'")
"""

LAST = """
# %% [markdown]
# # 3 · Does it go on?

# %% tags=["parameters"]
profile = "demo"
seed = 0

# %%
print("seed", seed)
"""

PROFILE = f"""
base = "demo"
name = "mine"
about = '''About {HOSTILE}'''
banner = '''Banner {HOSTILE}'''
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of three notebooks, run with a profile of one's own: first 01 and 02, then 03 alone."""
    home = tmp_path_factory.mktemp("report")
    for name, text in {"01_listen": LISTEN, "02_fail": FAIL, "03_last": LAST}.items():
        (home / f"{name}.py").write_text(text.lstrip(), encoding="utf-8")
    (home / "mine.toml").write_text(PROFILE, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WHISPER_SAE_REPORTS", str(home / "reports"))
        mine = str(home / "mine.toml")
        plan = runner.plan(mine, ["1", "02"], seed=7, given=[("steps", "5"), ("rate", "2")], folder=home)
        first = runner.run(plan)
        before = (plan.where / "01_listen.html").read_text(encoding="utf-8")
        later = runner.run(runner.plan(mine, ["03"], folder=home))
        yield {"home": home, "where": plan.where, "first": first, "later": later, "before": before}


def text_of(made, name):
    return (made["where"] / name).read_text(encoding="utf-8")


def soup_of(made, name):
    return BeautifulSoup(text_of(made, name), "html.parser")


PAGES = ["index.html", "01_listen.html", "02_fail.html", "03_last.html"]


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_valid_html(made, name):
    html5lib.HTMLParser(strict=True).parse(text_of(made, name))


@pytest.mark.parametrize("name", PAGES)
def test_a_page_asks_no_other_host_for_anything(made, name):
    page = text_of(made, name)
    soup = soup_of(made, name)
    asked = [tag[key] for tag in soup.find_all(True) for key in ("src", "srcset", "poster", "data") if tag.get(key)]
    assert all(url.startswith("data:") for url in asked), asked
    assert not soup.find_all(["link", "iframe", "object", "embed", "base"])
    assert not re.findall(r"url\((?!['\"]?(?:data:|#))|@import", page)
    links = [a["href"] for a in soup.find_all("a", href=True)]
    assert all(re.match(r"https://arxiv|#|[\w/.]+(#\w+)?$", href) for href in links), links
    for href in links:
        if not href.startswith(("https:", "#")):
            assert (made["where"] / href.partition("#")[0]).exists(), href
    assert "default-src 'none'" in soup.find("meta", attrs={"http-equiv": True})["content"]


@pytest.mark.parametrize("name", PAGES)
def test_a_page_can_be_read_by_everyone(made, name):
    soup = soup_of(made, name)
    assert soup.html["lang"] == "en" and soup.find("meta", attrs={"name": "viewport"})
    assert soup.title.get_text(strip=True) and len(soup.find_all("h1")) == 1
    assert all(image.get("alt") for image in soup.find_all("img"))
    ids = [tag["id"] for tag in soup.find_all(id=True)]
    assert len(ids) == len(set(ids))
    inside = {a["href"][1:] for a in soup.find_all("a", href=True) if a["href"].startswith("#")}
    assert inside <= set(ids) and "main" in inside


def test_what_came_from_data_is_escaped(made):
    for name in PAGES:
        page = text_of(made, name)
        assert "<script>alert" not in page and "<img src=x" not in page, name
        assert "Banner &lt;/title&gt;" in page
    assert soup_of(made, "01_listen.html").find(class_="headline").get_text(strip=True) == HOSTILE
    assert "no &lt;b&gt;clips&lt;/b&gt;" in text_of(made, "02_fail.html")


def test_names_of_a_run_are_escaped_too(made):
    node = pairing.read(made["home"] / "03_last.py")
    row = dict.fromkeys(["seed", "commit", "date", "device", "error", "headline"], HOSTILE)
    row |= {"name": "03_last", "title": "3 · <b>x</b>", "seconds": 1, "steps": {HOSTILE: HOSTILE}, "tables": []}
    run = {"profile": HOSTILE, "banner": HOSTILE, "about": HOSTILE, **row}
    for page in (
        pages.page(readable.prepared(node), row, run, {"02_x": HOSTILE, "03_last": "x", "04_x": HOSTILE}),
        pages.index([{**row, "number": "03", "status": "done"}], run),
    ):
        assert "<script>alert" not in page and "<img src=x" not in page and "<b>x" not in page
        html5lib.HTMLParser(strict=True).parse(page)


def test_the_page_shows_the_run_and_not_what_was_typed(made):
    page = soup_of(made, "01_listen.html")
    assert "Typed by hand" not in page.get_text()
    assert [dt.get_text() for dt in page.select("dl.brief dt")] == list(pages.BRIEF)
    line = page.find(class_="parameters").get_text()
    assert line == "Run with profile = 'mine.toml', seed = 7, steps = 5, rate = 2.0"
    assert "(5, 2.0, 7)" in page.get_text()
    assert "injected" not in page.get_text() and "findings/01_listen.json" not in page.get_text()
    assert len(page.select("math")) == 3 and page.title.get_text().startswith("1 · What does a layer keep of x?")
    assert [a.get_text() for a in page.select(".tables li a")] == ["01_listen_sizes.csv"]
    assert page.select(".prose td.number, .prose td[align=right]") and page.select(".scroll > table.dataframe")


def test_code_is_folded_shown_or_gone_as_its_tags_say(made):
    page = soup_of(made, "01_listen.html")
    assert "shown" in page.select_one("div.code").get_text()
    folded = [details.get_text() for details in page.select("details.code")]
    assert any("tqdm(range(20)" in code for code in folded) and not any("A point." in code for code in folded)
    assert all(not details.has_attr("open") for details in page.select("details.code"))


def test_headings_have_permalinks_and_make_the_contents(made):
    page = soup_of(made, "01_listen.html")
    for box in page.select(".contents"):
        links = [a["href"] for a in box.find_all("a")]
        assert links == ["#same-heading", "#same-heading-2", "#tables-of-this-page"]
    assert page.find(id="same-heading").find(class_="permalink")["href"] == "#same-heading"


def test_progress_bars_are_hidden_and_warnings_are_not(made):
    page = soup_of(made, "01_listen.html")
    shown = "".join(output.get_text() for output in page.select(".output"))
    assert "it/s]" not in shown and "extracting" not in shown
    warning = page.find("details", class_="warning")
    assert warning.summary.get_text() == "1 warning"
    assert "UserWarning: the <clock> is slow" in warning.get_text() and "ipykernel_" not in warning.get_text()
    assert "plain <b>words</b>" in page.find(class_="stdout").get_text()


def test_a_failure_is_published_and_the_rest_goes_on(made):
    assert made["first"]["02_fail"]["status"] == "failed"
    assert made["first"]["02_fail"]["error"] == "ValueError: no <b>clips</b> & no 'speech'"
    page = soup_of(made, "02_fail.html")
    assert "did not finish" in page.select_one(".stopped").get_text()
    failure = page.find(id="error")
    assert failure.p.get_text() == "ValueError: no <b>clips</b> & no 'speech'"
    assert not failure.details.has_attr("open") and "Traceback" in failure.details.get_text()
    assert "papermill" not in page.main.get_text().lower()
    assert made["later"]["03_last"]["status"] == "done"


def test_running_one_notebook_keeps_what_is_known_of_the_others(made):
    run = json.loads(text_of(made, "run.json"))
    assert list(run["notebooks"]) == ["01_listen", "02_fail", "03_last"]
    assert run["notebooks"]["01_listen"]["seed"] == 7 and run["notebooks"]["03_last"]["seed"] == 0
    assert 'href="index.html#03_last">3' in made["before"]  # once 03 has a page, the link leads to it
    assert text_of(made, "01_listen.html") == made["before"].replace("index.html#03_last", "03_last.html")
    cards = soup_of(made, "index.html").select(".card")
    assert [card["class"][1] for card in cards] == ["done", "failed", "done"]
    assert HOSTILE in cards[0].get_text() and cards[0].img["alt"] == "A point."
    assert soup_of(made, "02_fail.html").find("a", rel="next")["href"] == "03_last.html"


def test_a_notebook_not_yet_run_is_named_in_the_index(made):
    shutil.copy(made["home"] / "03_last.py", made["home"] / "04_new.py")
    try:
        runner._publish_index(runner.plan(str(made["home"] / "mine.toml"), folder=made["home"]))
        card = soup_of(made, "index.html").find(id="04_new")
        assert "not run" in card.get_text() and not card.find("a")
    finally:
        (made["home"] / "04_new.py").unlink()


def test_a_page_says_how_it_was_made(made):
    words = soup_of(made, "01_listen.html").find("dl", class_="provenance").get_text(" ")
    for word in ("profile mine", "seed 7", "commit", "date", "device", "time", "python"):
        assert word in words
    run = json.loads(text_of(made, "run.json"))
    assert {"profile", "seed", "commit", "dirty", "date", "device", "versions", "notebooks"} <= set(run)


def test_an_old_answer_is_not_taken_for_a_new_one(made):
    (made["home"] / "01_listen.py").write_text(
        LISTEN.lstrip().replace("results.save(", "(lambda *gone: None)("), encoding="utf-8"
    )
    row = runner.run(runner.plan(str(made["home"] / "mine.toml"), ["01"], folder=made["home"]))["01_listen"]
    assert row["status"] == "done" and row["headline"] == "" and row["tables"] == []


@pytest.mark.parametrize(
    "asked, said",
    [
        (dict(numbers=["9"]), "there is no notebook '9'; there is 01_listen, 02_fail, 03_last"),
        (dict(given=[("stepz", "1")]), "-p stepz: no such parameter; there is rate, steps"),
        (dict(given=[("steps", "many")]), "-p steps: expected int like 3, got 'many'"),
        (dict(given=[("seed", "1")]), "--seed"),
        (dict(profile="nowhere"), "profile"),
    ],
)
def test_a_wrong_request_is_refused_before_anything_runs(made, asked, said):
    with pytest.raises(ValueError, match=re.escape(said)) as refusal:
        runner.plan(**{"folder": made["home"], **asked})
    assert "\n" not in str(refusal.value)


def test_a_notebook_must_take_profile_and_seed(tmp_path):
    (tmp_path / "01_x.py").write_text('# %% tags=["parameters"]\nprofile = "demo"\n')
    with pytest.raises(ValueError, match="01_x has no parameter 'seed'"):
        runner.plan(folder=tmp_path)


def test_the_command_ends_with_a_code_and_one_line(made, monkeypatch, capsys):
    monkeypatch.setattr(runner, "NOTEBOOKS", made["home"])
    monkeypatch.setenv("WHISPER_SAE_REPORTS", str(made["home"] / "reports"))
    assert __main__.main(["03"]) == 0
    assert capsys.readouterr().out.strip().endswith("demo/index.html")
    assert __main__.main(["demo", "02", "--seed", "1"]) == 1
    assert "02_fail failed: ValueError: no <b>clips</b>" in capsys.readouterr().err
    for wrong in (["demo", "77"], ["nowhere"], ["demo", "-p", "x", "1"], ["demo", "--seed", "x"], ["--what"]):
        with pytest.raises(SystemExit) as stop:
            __main__.main(wrong)
        said = capsys.readouterr().err
        assert stop.value.code == 2 and said.startswith("whisper_sae: ") and said.count("\n") == 1, said


def test_durations_read_well():
    assert [pages.duration(s) for s in (0.42, 12.3, 200, 7500)] == ["0.4 s", "12 s", "3 min 20 s", "2 h 5 min"]


def test_without_git_the_commit_is_unknown(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert provenance.now()["commit"] == "unknown"


def test_progress_goes_to_a_terminal_live_and_to_a_file_seldom(made):
    class Screen:
        def __init__(self, live):
            self.live, self.said = live, ""

        def isatty(self):
            return self.live

        def write(self, text):
            self.said += text

        def flush(self):
            pass

    node = pairing.read(made["home"] / "03_last.py")
    for live in (True, False):
        screen = Screen(live)
        line = progress.Line(progress.Terminal(screen), "03_last", node)
        line.cell(node.cells[0], 0)
        line.write("\rextracting:  50%|#####     | 1/2 [00:01<00:01]")
        line.end("done", "2.0 s")
        assert screen.said.endswith("03_last  done  4 cells  2.0 s\n")
        assert ("1/4  3 · Does it go on?  extracting:  50% 1/2 [00:01<00:01]" in screen.said) is live


@pytest.mark.parametrize(
    "said, kept",
    [
        ("\r  0%|          | 0/4 [00:00<?, ?it/s]\r 50%|#####     | 2/4 [00:01<00:01,  1.9it/s, fvu=0.1]\n", ""),
        ("\rread:   0%|   | 0/4 [00:00<?, ?it/s]/a/b.py:8: UserWarning: odd\n  x\n", "b.py:8: UserWarning: odd\n  x"),
        ("\rread: 12it [00:01, 11.6it/s]\n", ""),
        ("Loading weights: 100%|\x1b[32m####\x1b[0m| 9/9 [00:00<00:00, 99.1it/s, Materializing param=x]\n", ""),
        ("/tmp/ipykernel_1/22.py:3: FutureWarning: soon\n", "line 3 of this cell: FutureWarning: soon"),
        ("plain remark, 50% of it\n", "plain remark, 50% of it"),
    ],
)  # fmt: skip
def test_only_progress_bars_are_taken_out_of_stderr(said, kept):
    assert readable._without_bars(said) == kept


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_a_browser_shows_the_page_with_no_network(made, tmp_path):
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --dump-dom"
    flags += " --disable-quic --disable-component-update --disable-sync --window-size=390,844 --enable-logging=stderr"
    done = subprocess.run(
        [CHROMIUM, *flags.split(), "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path}",
         (made["where"] / "01_listen.html").as_uri()],
        capture_output=True, text=True, timeout=60, env={**os.environ, "HOME": str(tmp_path)},
    )  # fmt: skip
    assert 'aria-current="true"' in done.stdout or "tabindex" in done.stdout
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not complaints, complaints


def test_help_is_quick_and_needs_no_notebook():
    done = subprocess.run(
        [sys.executable, "-m", "whisper_sae", "--help"],
        capture_output=True, text=True, timeout=60, cwd=Path(runner.PROJECT),
    )  # fmt: skip
    assert done.returncode == 0 and "pair --check" in done.stdout
