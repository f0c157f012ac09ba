"""A dictionary for everyone: one of our folders on the Hugging Face hub, with a model card, and back again.

What is pushed is the folder's two files and the card, and nothing that lies beside them. What is pulled was put there
by others: only the two files are fetched, neither can run code, and they are checked before they are written.
"""

import json
import re
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from whisper_sae.sae.io import FACTS, RULES, SAELENS, WEIGHTS, BadSAE, Described, one_line, read, write


def push(
    folder: str | Path, repo_id: str, *, license: str = "mit", private: bool = True, token: str | None = None,
    endpoint: str | None = None, **facts,
) -> str:  # fmt: skip
    """Put one of our folders on the Hugging Face hub, with a model card; gives the address of the commit.

    `facts` (fvu=0.12, l0=32.4, model="openai/whisper-tiny") join what `sae.json` says, there and on the card. A new
    repository is private until you say otherwise, here or on its page. `token` and `endpoint`: the hub's own, which
    its `login` and HF_ENDPOINT set too. Raises BadSAE when the hub is out of reach or refuses.
    """
    from huggingface_hub import HfApi  # slow to import, and needed by two functions alone

    with tempfile.TemporaryDirectory() as given:
        prepare(folder, given, repo_id, license, **facts)

        def upload():
            api = HfApi(endpoint=endpoint, token=token)
            api.create_repo(repo_id, private=private, exist_ok=True)
            return api.upload_folder(repo_id=repo_id, folder_path=given, commit_message="A sparse autoencoder")

        trouble = f"{repo_id}: cannot be pushed; is there a network, and a login (`hf auth login`)?"
        return str(_asked_of_the_hub(trouble, upload).commit_url)


def prepare(folder: str | Path, out: str | Path, repo_id: str, license: str = "mit", **facts) -> Path:
    """Write what `push` would upload: our two files, and the card as README.md. Whatever else is in `folder` stays."""
    said = read(folder)
    said = replace(said, about=said.about | facts)
    write(said, out)
    (Path(out) / "README.md").write_text(card(said, repo_id, license), encoding="utf-8")
    return Path(out)


def pull(
    repo_id: str, folder: str | Path, *, revision: str | None = None, token: str | None = None,
    endpoint: str | None = None,
) -> Described:  # fmt: skip
    """Fetch what `push` put on the hub into a folder that `sae.load` reads. What came is checked before it is written.

    `revision` is a branch, a tag or a commit. Raises BadSAE when the hub is out of reach or has no such thing.
    """
    from huggingface_hub import HfApi

    def download():
        api = HfApi(endpoint=endpoint, token=token)
        return api.snapshot_download(repo_id, revision=revision, allow_patterns=[WEIGHTS, FACTS])

    trouble = f"{repo_id}: cannot be pulled; is there a network, is that its name, may you read it?"
    fetched = _asked_of_the_hub(trouble, download)
    try:
        said = read(fetched)
    except BadSAE as error:
        raise BadSAE(f"{repo_id}: {error}") from None
    write(said, folder)
    return said


def _asked_of_the_hub(trouble: str, ask: Callable):
    try:
        return ask()
    except Exception as error:  # the hub's library raises a dozen kinds; each becomes one line
        raise BadSAE(" ".join(f"{trouble} {one_line(error)}".split())) from None


def card(said: Described, repo_id: str, license: str = "mit") -> str:
    """The model card of an SAE: what it is, how well it does if that is known, and how to load it.

    What comes from `sae.json` was written by others. At the head it is quoted as JSON, which YAML reads the same way;
    below, every sign that Markdown or HTML could take for one of theirs is spelt as a number.
    """
    scored = "" if "fvu" in said.about else "No scores came with it: measure it on your own frames first.\n"
    known = [_plain(said.about[part]) for part in ("site", "model") if said.about.get(part)]
    place = " of ".join(known) or "a speech model's activations"
    return "\n".join([
        "---",
        *(f"{name}: {json.dumps(value)}" for name, value in _head(said, license).items()),
        "---",
        "",
        f"# A sparse autoencoder of {place}",
        "",
        f"It says an activation again as a sum of few of {said.d_sae:,} directions.",
        scored,
        "| | |",
        "|---|---|",
        *(f"| {_plain(name)} | {_plain(value)} |" for name, value in _rows(said).items()),
        "",
        "```",
        "pre   = (x - b_dec) W_enc + b_enc",
        "f     = pre where it is answered, else 0",
        "x_hat = f W_dec + b_dec",
        "```",
        "",
        "## How to load it",
        "",
        "```python",
        "from whisper_sae.sae import architectures, hub_upload, io",
        "",
        f'hub_upload.pull({json.dumps(repo_id)}, "the_sae")',
        'coder = architectures.load("the_sae")',
        f"f = coder.encode(x)  # (frame, {said.d_sae}) of x, (frame, {said.d_in})",
        "",
        'io.to_saelens("the_sae", "for_saelens")  # then SAELens: SAE.load_from_disk("for_saelens")',
        "```",
        "",
    ])  # fmt: skip


def _head(said: Described, license: str) -> dict:
    """What the hub reads of a card. A base model is named only if the name can be no other thing."""
    head = {
        "license": license,
        "library_name": "whisper_sae",
        "tags": ["sparse-autoencoder", "sae", "interpretability", "whisper", "speech"],
    }
    model = said.about.get("model")
    if isinstance(model, str) and re.fullmatch(r"openai/whisper-[a-z0-9.-]{1,40}", model):
        head["base_model"] = model
    return head


def _rows(said: Described) -> dict:
    """What a reader is told of it: variant, sizes, and whatever else is known."""
    rows = {"variant": said.variant, "answers": RULES[said.variant], "width": said.d_in, "latents": said.d_sae}
    if SAELENS[said.variant] != "standard":
        rows["k"] = said.k
    if said.variant in ("batchtopk", "matryoshka"):
        rows["threshold"] = float(said.tensors["threshold"])
    names = {"fvu": "variance unexplained (FVU)", "l0": "latents a frame (L0)"}
    about = {key: value for key, value in said.about.items() if key not in rows and value is not None}
    return rows | {names.get(key, key): value for key, value in about.items() if key != "penalty" or value}


def _plain(value) -> str:
    """Somebody's words as words and nothing else, in Markdown and HTML."""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    text = "".join(sign for sign in " ".join(text.split())[:300] if sign.isprintable())
    return "".join(sign if sign.isalnum() or sign in " .,-+" else f"&#{ord(sign)};" for sign in text)
