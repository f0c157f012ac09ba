"""The two halves of a notebook: kept together by `sync`, told apart by `disagreements`, checked by nbval."""

import json
import subprocess
import sys

import nbformat
import pytest

from whisper_sae import __main__
from whisper_sae.report import pairing, runner

TEXT = """# %% [markdown]
# # 1 · Does it count?

# %% tags=["parameters"]
profile = "demo"
seed = 0

# %%
print("not checked")

# %% tags=["nbval-check-output"]
print("facts", 2 + 2)
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "01_count.py").write_text(TEXT, encoding="utf-8")
    return tmp_path


def book(folder):
    return nbformat.read(folder / "01_count.ipynb", as_version=4)


def executed(folder):
    """What a run would hand to `record`: an injected cell, outputs everywhere, fresh ids."""
    node = pairing.read(folder / "01_count.py")
    node.cells.insert(2, nbformat.v4.new_code_cell("seed = 0", metadata={"tags": ["injected-parameters"]}))
    for number, cell in enumerate(c for c in node.cells if c.cell_type == "code"):
        cell.execution_count = number + 1
        cell.outputs = [
            nbformat.v4.new_output("stream", name="stderr", text="a bar"),
            nbformat.v4.new_output("stream", name="stdout", text="facts "),
            nbformat.v4.new_output("stream", name="stdout", text="4\n"),
        ]
    return {"01_count": node}


def test_a_missing_half_is_made_and_a_second_time_nothing_is_written(folder):
    assert "01_count.ipynb: missing" in pairing.disagreements(folder)[0]
    assert [path.name for path in pairing.sync(folder)] == ["01_count.ipynb"]
    assert pairing.sync(folder) == []
    node = book(folder)
    nbformat.validate(node)
    assert [cell.cell_type for cell in node.cells] == ["markdown", "code", "code", "code"]
    assert node.metadata == {"kernelspec": pairing.KERNEL}
    assert not list(folder.glob(".*"))


def test_outputs_are_kept_only_where_they_are_checked(folder):
    pairing.record(folder, executed(folder))
    *others, checked = (cell for cell in book(folder).cells if cell.cell_type == "code")
    assert all(cell.outputs == [] and cell.execution_count is None for cell in others)
    assert [output.text for output in checked.outputs] == ["facts 4\n"] and checked.execution_count == 3
    assert pairing.disagreements(folder) == []
    assert pairing.record(folder, executed(folder)) == []


def test_a_change_keeps_ids_and_the_outputs_of_what_did_not_change(folder):
    pairing.record(folder, executed(folder))
    before = book(folder)
    text = folder / "01_count.py"
    text.write_text(TEXT.replace("not checked", "changed") + '\n# %%\nprint("new")\n', encoding="utf-8")
    assert "differs from 01_count.py" in pairing.disagreements(folder)[0]
    pairing.sync(folder)
    after = book(folder)
    assert [cell.id for cell in after.cells[:4]] == [cell.id for cell in before.cells]
    assert after.cells[3].outputs == before.cells[3].outputs != []
    assert after.cells[2].source == 'print("changed")' and len(after.cells) == 5
    assert pairing.disagreements(folder) == []


def test_a_changed_check_loses_its_output_and_says_so(folder):
    pairing.record(folder, executed(folder))
    text = folder / "01_count.py"
    text.write_text(TEXT.replace("2 + 2", "2 + 3"), encoding="utf-8")
    pairing.sync(folder)
    assert book(folder).cells[3].outputs == []
    assert pairing.disagreements(folder) == [
        "01_count.ipynb: cell 4 is to be checked and has no output; run `pair --execute`"
    ]


def test_tags_belong_to_the_text(folder):
    pairing.record(folder, executed(folder))
    text = folder / "01_count.py"
    text.write_text(TEXT.replace(' tags=["nbval-check-output"]', ""), encoding="utf-8")
    assert pairing.disagreements(folder)
    pairing.sync(folder)
    assert book(folder).cells[3].metadata == {} and book(folder).cells[3].outputs == []


@pytest.mark.parametrize("fault", ["source", "output", "broken", "alone", "cell"])
def test_every_way_to_disagree_is_found(folder, fault):
    pairing.record(folder, executed(folder))
    path, node = folder / "01_count.ipynb", book(folder)
    if fault == "source":
        node.cells[2].source = "print('edited in Jupyter')"
    if fault == "output":
        node.cells[2].outputs = [nbformat.v4.new_output("stream", name="stdout", text="left behind")]
    if fault == "cell":
        del node.cells[2]
    nbformat.write(node, path)
    if fault == "broken":
        path.write_text(path.read_text(encoding="utf-8")[:-40], encoding="utf-8")
    if fault == "alone":
        (folder / "01_count.py").rename(folder / "02_count.py")
    faults = pairing.disagreements(folder)
    assert faults and all("\n" not in line for line in faults)


def test_what_was_executed_must_be_what_is_written(folder):
    old = executed(folder)
    (folder / "01_count.py").write_text(TEXT.replace("2 + 2", "2 + 3"), encoding="utf-8")
    with pytest.raises(ValueError, match="not what the file says now"):
        pairing.record(folder, old)


@pytest.mark.slow
def test_jupytext_and_nbval_agree_with_us(folder):
    """`jupytext --test` finds the pair equal; nbval accepts the recorded fact and refuses a wrong one."""
    pairing.record(folder, executed(folder))
    (folder / "jupytext.toml").write_text((runner.NOTEBOOKS / "jupytext.toml").read_text(encoding="utf-8"))
    path = folder / "01_count.ipynb"

    def ask(*command):
        return subprocess.run([sys.executable, "-m", *command], cwd=folder, capture_output=True, text=True, timeout=120)

    before = path.read_bytes()
    done = ask("jupytext", "--sync", "01_count.py")
    assert done.returncode == 0, done.stderr
    assert nbformat.reads(path.read_text(), 4).cells == nbformat.reads(before.decode(), 4).cells
    assert pairing.disagreements(folder) == []

    nbval = (
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--nbval-lax",
        "--nbval-current-env",
        "-c",
        "/dev/null",
        str(path),
    )
    done = ask(*nbval)
    assert done.returncode == 0, done.stdout
    path.write_text(path.read_text().replace("facts 4", "facts 5"))
    assert ask(*nbval).returncode == 1


def test_the_command_checks_syncs_and_records(folder, monkeypatch, capsys):
    monkeypatch.setattr(runner, "NOTEBOOKS", folder)
    monkeypatch.setenv("WHISPER_SAE_REPORTS", str(folder / "reports"))
    assert __main__.main(["pair", "--check"]) == 1
    assert "whisper_sae: 01_count.ipynb: missing" in capsys.readouterr().err
    assert __main__.main(["pair"]) == 0
    assert __main__.main(["pair", "--check"]) == 1
    assert "run `pair --execute`" in capsys.readouterr().err
    assert __main__.main(["pair", "--execute"]) == 0
    assert __main__.main(["pair", "--check"]) == 0
    assert book(folder).cells[3].outputs[0].text == "facts 4\n"
    assert json.loads((folder / "reports/demo/run.json").read_text())["notebooks"]["01_count"]["status"] == "done"


def test_a_failed_notebook_is_not_recorded(folder, monkeypatch, capsys):
    monkeypatch.setattr(runner, "NOTEBOOKS", folder)
    monkeypatch.setenv("WHISPER_SAE_REPORTS", str(folder / "reports"))
    pairing.record(folder, executed(folder))
    before = (folder / "01_count.ipynb").read_bytes()
    (folder / "01_count.py").write_text(TEXT.replace("2 + 2", "1 / 0"), encoding="utf-8")
    assert __main__.main(["pair", "--execute"]) == 1
    assert (folder / "01_count.ipynb").read_bytes() == before


def test_the_notebooks_of_this_project_agree():
    assert pairing.disagreements(runner.NOTEBOOKS) == []
