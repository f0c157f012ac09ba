"""What is put on the hub comes back the same, its card holds nobody's markup, and trouble is said in one line."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import pytest
import torch
import yaml

from whisper_sae.sae import architectures, hub_upload, io
from whisper_sae.sae.io import BadSAE


def parts_of(card: str) -> tuple[dict, str]:
    """The head of a model card, as YAML reads it, and the rest."""
    found = re.fullmatch(r"---\n(.*?)\n---\n(.*)", card, re.S)
    return yaml.safe_load(found[1]), found[2]


def test_the_card_says_what_it_is_and_how_to_load_it(saved):
    about = {"model": "openai/whisper-tiny", "fvu": 0.12345678, "l0": 6.02, "penalty": None}
    head, text = parts_of(hub_upload.card(io.read(saved("batchtopk", **about)), "me/my-sae", "apache-2.0"))
    assert head["license"] == "apache-2.0" and head["base_model"] == "openai/whisper-tiny"
    assert "sparse-autoencoder" in head["tags"]
    assert "# A sparse autoencoder of encoder.2.resid of openai&#47;whisper-tiny" in text
    for row in ("| variant | batchtopk |", "| width | 24 |", "| latents | 96 |", "| k | 6 |", "| 0.1235 |", "| 6.02 |"):
        assert row in text
    assert "penalty" not in text and "No scores" not in text
    assert 'hub_upload.pull("me/my-sae", "the_sae")' in text


def test_the_card_of_an_sae_without_scores_says_so(saved):
    head, text = parts_of(hub_upload.card(io.read(saved("relu")), "me/my-sae"))
    assert "No scores came with it" in text and "base_model" not in head and "| k |" not in text


HOSTILE = "x\n---\nlicense: evil\n# <script>alert(1)</script> | [a](javascript:b) \u202e `c` **d** _e_ ![f](https://g)"
HOSTILE += " \"h' \\i"


@pytest.mark.parametrize("key", ["model", "site", "note", HOSTILE])
def test_words_of_others_are_words_on_the_card(key, saved):
    said = io.read(saved("topk", **{key: HOSTILE}))
    plain = io.read(saved("topk", "other", **{key: "x"}))
    for license in ("mit", HOSTILE):
        head, text = parts_of(hub_upload.card(said, 'me/"\n```\n', license))
        assert head["license"] == license and set(head) == {"license", "library_name", "tags"}
    assert "\u202e" not in text
    text, bare = hub_upload.card(said, "me/my-sae"), hub_upload.card(plain, "me/my-sae")
    for sign in '<>[]()`*_!"\\:#|\n':
        if sign not in "#":  # which is in &#60;
            assert text.count(sign) == bare.count(sign), sign
    assert re.findall(r"#(?!\d+;)", text) == re.findall(r"#(?!\d+;)", bare)


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as pushing and pulling needs, on this machine. `files` is what it keeps."""

    files: dict[str, bytes]
    asked: list[str]
    refuse = False

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.asked.append(self.path)
        if self.refuse:
            return self.say({"error": "Invalid credentials"}, 401)
        if self.path == "/api/validate-yaml":
            head, _ = parts_of(json.loads(body)["content"])
            return self.say({"errors": [] if head else [{"message": "no head"}], "warnings": []})
        if "/preupload/" in self.path:
            modes = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return self.say({"files": modes})
        if "/commit/" in self.path:
            for line in map(json.loads, body.decode().splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return self.say(
                {
                    "commitUrl": f"{self.endpoint}/me/my-sae/commit/" + "c" * 40,
                    "commitOid": "c" * 40,
                    "success": True,
                }
            )
        if self.path == "/api/repos/create":
            self.asked.append(body.decode())
            return self.say({"url": f"{self.endpoint}/me/my-sae"})
        return self.say({"error": "what?"}, 404)

    def do_GET(self):
        self.asked.append(self.path)
        path = self.path.split("?")[0]
        if path.startswith("/api/models/me/my-sae/tree/"):
            tree = [{"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                    for name, content in self.files.items()]  # fmt: skip
            return self.say(tree)
        if path.startswith("/api/models/me/my-sae"):
            told = {"id": "me/my-sae", "sha": "c" * 40, "siblings": [{"rfilename": name} for name in self.files]}
            return self.say(told | {"private": False, "tags": [], "downloads": 0, "likes": 0})
        name = path.split("/")[-1]
        if path.startswith("/me/my-sae/resolve/") and name in self.files:
            return self.say(self.files[name])
        self.say({"error": "Repository not found"}, 404)

    do_HEAD = do_GET

    def say(self, what, status=200):
        content = what if isinstance(what, bytes) else json.dumps(what).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", "c" * 40)
        if status == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub on this machine, with nothing in it, and a cache of this test's own: its `endpoint`, `files`, `asked`."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    handler = type("Here", (Hub,), {"files": {}, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    handler.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    yield handler
    server.shutdown()
    thread.join()
    server.server_close()


def test_what_is_pushed_can_be_pulled(hub, saved, frames, tmp_path):
    folder = saved("batchtopk")
    (folder / "secret.txt").write_text("not for others")
    where = hub_upload.push(
        folder,
        "me/my-sae",
        license="apache-2.0",
        token="t",
        endpoint=hub.endpoint,
        fvu=0.25,
        model="openai/whisper-tiny",
    )
    assert where == f"{hub.endpoint}/me/my-sae/commit/" + "c" * 40
    assert set(hub.files) == {"README.md", "sae.json", "sae.safetensors"}
    assert json.loads(hub.asked[1])["visibility"] == "private"
    head, text = parts_of(hub.files["README.md"].decode())
    assert head["license"] == "apache-2.0" and head["base_model"] == "openai/whisper-tiny" and "| 0.25 |" in text
    assert sorted(path.name for path in folder.iterdir()) == ["sae.json", "sae.safetensors", "secret.txt"]

    told = hub_upload.pull("me/my-sae", tmp_path / "back", token="t", endpoint=hub.endpoint)
    assert told.about["fvu"] == 0.25
    assert torch.equal(architectures.load(tmp_path / "back").encode(frames), architectures.load(folder).encode(frames))
    assert sorted(path.name for path in (tmp_path / "back").iterdir()) == ["sae.json", "sae.safetensors"]


def test_what_the_card_says_to_run_runs(hub, saved, frames, tmp_path, monkeypatch):
    folder = saved("topk")
    hub_upload.push(folder, "me/my-sae", token="t", endpoint=hub.endpoint)
    (code,) = re.findall(r"```python\n(.*?)```", hub.files["README.md"].decode(), re.S)
    told = '"me/my-sae", "the_sae"'
    assert code.count(told) == 1
    monkeypatch.chdir(tmp_path)
    names = {"x": frames}
    exec(code.replace(told, f"{told}, token='t', endpoint={hub.endpoint!r}"), names)
    assert torch.equal(names["f"], architectures.load(folder).encode(frames))
    assert (tmp_path / "for_saelens/cfg.json").exists()


def test_what_would_be_pushed_can_be_looked_at(saved, tmp_path):
    out = hub_upload.prepare(saved("topk"), tmp_path / "look", "me/my-sae", l0=5.9)
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "sae.json", "sae.safetensors"]
    assert io.read(out).about["l0"] == 5.9
    assert huggingface_hub.ModelCard.load(out / "README.md").data.license == "mit"


def test_what_comes_from_the_hub_is_checked(hub, saved, tmp_path):
    folder = saved("topk")
    hub.files |= {"sae.json": b'{"variant": "topk", "k": 10000}'}
    hub.files |= {"sae.safetensors": (folder / "sae.safetensors").read_bytes(), "evil.py": b"import os"}
    with pytest.raises(BadSAE, match=r"^me/my-sae: .*k must be a whole number"):
        hub_upload.pull("me/my-sae", tmp_path / "back", token="t", endpoint=hub.endpoint)
    assert not (tmp_path / "back").exists()
    assert not list((tmp_path / "cache").rglob("evil.py"))


@pytest.mark.parametrize("repo_id", ["me/other", "me/my sae", "a/b/c", "../up"])
def test_a_repository_that_is_not_there_is_named(hub, repo_id, tmp_path):
    with pytest.raises(BadSAE, match=f"^{re.escape(repo_id)}: cannot be pulled; ") as caught:
        hub_upload.pull(repo_id, tmp_path / "back", token="t", endpoint=hub.endpoint)
    assert "\n" not in str(caught.value)


def test_a_refusal_is_one_line_without_the_token(hub, saved):
    hub.refuse = True
    with pytest.raises(BadSAE, match=r"^me/my-sae: cannot be pushed; ") as caught:
        hub_upload.push(saved("topk"), "me/my-sae", token="hf_veryverysecret", endpoint=hub.endpoint)
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)


@pytest.mark.parametrize("way", ["push", "pull"])
@pytest.mark.parametrize("trouble", ["nobody answers", "told to stay offline"])
def test_without_a_network_there_is_one_line(way, trouble, hub, saved, tmp_path, monkeypatch):
    if trouble != "nobody answers":
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    folder = saved("topk") if way == "push" else tmp_path / "back"
    with pytest.raises(BadSAE, match=f"^me/my-sae: cannot be {way}ed; ") as caught:
        # port 9 is `discard`, where nobody listens
        options = {"token": "t", "endpoint": "http://127.0.0.1:9"}
        if way == "push":
            hub_upload.push(folder, "me/my-sae", **options)
        else:
            hub_upload.pull("me/my-sae", folder, **options)
    assert "\n" not in str(caught.value)
