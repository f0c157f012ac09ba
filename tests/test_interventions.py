"""Interventions on mean codes are those on every token; controls are matched; a vector's file works in transformers."""

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from transformers import T5Config, T5EncoderModel

from whisper_sae import interventions, modules, sae, verdicts

NAMES = ("calm", "sad")


@pytest.fixture
def world():
    """Texts of 3 tokens whose class lies along two of a dictionary's directions; codes, states and labels."""
    rng = np.random.default_rng(0)
    coder = sae.create("topk", 24, 96, 12, seed=1)
    label = np.repeat(NAMES, 60)
    truth = coder.W_dec.detach().numpy()
    tokens = 0.3 * rng.normal(size=(120, 3, 24)) + 2 * truth[np.where(label == "calm", 5, 9)][:, None]
    tokens = torch.tensor(tokens, dtype=torch.float32)
    f = coder.eval().encode(tokens).detach()
    codes = interventions.Codes(tokens.mean(1).numpy(), f.mean(1).numpy(), truth, coder.b_dec.detach().numpy())
    judge = LogisticRegression(C=0.1).fit(codes.x[::2], label[::2])
    given = {name: codes.f[::2][label[::2] == name].mean(axis=0) for name in NAMES}
    return coder, tokens, codes, label, judge, given


@pytest.mark.parametrize("way", interventions.WAYS)
def test_what_is_done_to_the_mean_is_what_is_done_to_every_token(world, way):
    coder, tokens, codes, _, _, given = world
    mine = [5, 9, 30]
    with torch.no_grad():
        f = coder.encode(tokens)
        other = torch.zeros_like(f)
        other[..., mine] = torch.tensor(given["sad"][mine]).float() if way == "transplanted" else 0
        said = f[..., mine] @ coder.W_dec[mine]
        want = {
            "silenced": tokens - said,
            "alone": coder.b_dec + said,
            "transplanted": tokens - said + other @ coder.W_dec,
        }[way].mean(dim=1)
    np.testing.assert_allclose(interventions.changed(codes, mine, way, given["sad"]), want, atol=1e-5)


def test_nothing_changed_changes_nothing(world):
    codes = world[2]
    assert np.array_equal(interventions.changed(codes, [], "silenced"), codes.x)
    with pytest.raises(ValueError, match="'louder' is not one of silenced"):
        interventions.changed(codes, [], "louder")


def test_true_features_are_causes_and_others_are_not(world):
    _, _, codes, label, judge, given = world
    told = interventions.interventions(judge, codes, label, given, {"calm": [5], "sad": [9]}, draws=60)
    assert (told.p <= 0.05).all() and len(told) == 6
    silenced = told[told.way == "silenced"]
    assert (silenced.after < silenced.before - 0.2).all() and (silenced.control > silenced.before - 0.1).all()
    idle = [int(np.argsort(given["calm"])[-12])]
    wrong = interventions.interventions(judge, codes, label, given, {"calm": idle}, draws=60)
    assert (wrong.p > 0.05).any()
    assert interventions.interventions(judge, codes, label, given, {"calm": []}).empty


def test_matched_features_say_as_much_and_are_others():
    amount = np.linspace(0, 1, 200)
    drawn = interventions.matched(amount, [50, 150], amount > 0, np.random.default_rng(0), near=8)
    assert not set(drawn) & {50, 150} and np.abs(amount[drawn] - amount[[50, 150]]).max() < 0.05
    with pytest.raises(ValueError, match="1 others are too few to match 2"):
        interventions.matched(amount[:3], [0, 1], np.ones(3, bool), np.random.default_rng(0))


def test_a_true_vector_steers_and_random_ones_do_not(world):
    _, _, codes, label, judge, _ = world
    vectors = {
        "feature": {"calm": codes.W_dec[5], "sad": codes.W_dec[9]},
        "wrong": {"calm": codes.W_dec[0], "sad": codes.W_dec[1]},
    }
    told = interventions.steered(judge, codes.x, label, vectors, [0.0, 2.0], draws=50).set_index(
        ["class", "vector", "alpha"]
    )
    for name in NAMES:
        assert told.rise[name, "feature", 0.0] == 0
        assert told.rise[name, "feature", 2.0] > told.p95[name, "random", 2.0]
        assert told.rise[name, "feature", 2.0] > told.rise[name, "wrong", 2.0] + 0.1


def test_the_file_is_what_the_three_lines_need(tmp_path):
    """The lines of the example, on a small T5: α = 0 changes nothing, else the states move by α along the vector."""
    path = interventions.save(
        tmp_path / "steering.safetensors", {"happy": np.full(32, 3.0)}, {"site": "s", "alpha": 2.0}
    )
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"site": '"s"', "alpha": "2.0", "example": interventions.EXAMPLE}
    vectors = load_file(path)
    assert vectors["happy"].norm() == pytest.approx(1)
    net = T5EncoderModel(T5Config(num_layers=2, d_model=32, d_kv=8, d_ff=64, num_heads=4, vocab_size=20)).eval()
    given = {"input_ids": torch.tensor([[3, 4, 5]])}
    clean = net(**given).last_hidden_state
    for alpha in (0.0, 2.0):
        handle = net.encoder.final_layer_norm.register_forward_hook(
            lambda module, given, said, alpha=alpha: said + alpha * vectors["happy"]
        )
        moved = net(**given).last_hidden_state - clean
        handle.remove()
        torch.testing.assert_close(moved, (alpha * vectors["happy"]).expand_as(moved), atol=1e-6, rtol=1e-4)
    with modules.at(net, {"encoder.final_layer_norm": lambda said: said + 2.0 * vectors["happy"]}):
        assert not torch.equal(net(**given).last_hidden_state, clean)
    with pytest.raises(ValueError, match="has no direction"):
        interventions.save(tmp_path / "bad.safetensors", {"a": np.zeros(3)}, {})


def told_of(found, share=0.9, p=0.01):
    """Tables as notebook 8 has them, of so many features found of each of two emotions."""
    rows = pd.DataFrame({
        "class": np.repeat(NAMES, 60), "found": np.tile(np.arange(60) < found, 2), "selectivity": 3.0,
        "held_out": 3.0, "word_free": 3.0,
    })  # fmt: skip
    read = [
        ("unseen phrases", "embedding", share, share - 0.1, share),
        ("unseen phrases", "emotions dealt anew", 0.25, 0.2, 0.3),
    ]
    ways = pd.DataFrame([(name, way, p) for name in NAMES for way in interventions.WAYS], columns=["class", "way", "p"])
    steer = pd.DataFrame([(n, kind, r, r) for n in NAMES for kind, r in (("feature", share), ("random", 0.3))],
                         columns=["class", "vector", "rise", "p95"])  # fmt: skip

    class Alike:
        difference, p, chance_most = 0.02, 0.001 if share > 0.5 else 0.6, 0.003

    fvu = pd.DataFrame({"rival": ["dictionary", "principal directions"], "fvu": [0.5 * (1 - share) + 0.1, 0.3]})
    return dict(
        likeness=Alike, probed=pd.DataFrame(read, columns=["question", "input", "right", "low", "high"]), rivals=fvu,
        l0=32 if share > 0.5 else 700, dead=0.02, latents=3072, found=rows, causes=ways,
        random=rows.assign(found=False),
        apart=(1.0 if share > 0.5 else 0.5, 0.9), stable=(share, 0.0), steered=steer,
    )  # fmt: skip


def test_every_must_have_can_pass_and_can_fail():
    good = verdicts.table(**told_of(30))
    bad = verdicts.table(**told_of(0, share=0.2, p=0.5))
    assert (good.passes == "pass").all() and (bad.passes == "fail").all()
    assert len(good) == 11 and good["as published"].str.len().min() > 3
    few = verdicts.table(**told_of(9)).set_index("must have").passes
    assert few["each emotion has features"] == "fail" and few["they hold without the words"] == "pass"
