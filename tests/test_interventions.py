"""Interventions on mean codes are those on every token; controls are matched; a vector's file works in transformers."""

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from transformers import T5Config, T5EncoderModel

from whisper_sae.activations import modules
from whisper_sae.causal import controls
from whisper_sae.experiments import criteria, prompt_interventions
from whisper_sae.sae import architectures

NAMES = ("calm", "sad")


@pytest.fixture
def world():
    """Texts of 3 tokens whose class lies along two of a dictionary's directions; codes, states and labels."""
    rng = np.random.default_rng(0)
    coder = architectures.create("topk", 24, 96, 12, seed=1)
    label = np.repeat(NAMES, 60)
    truth = coder.W_dec.detach().numpy()
    tokens = 0.3 * rng.normal(size=(120, 3, 24)) + 2 * truth[np.where(label == "calm", 5, 9)][:, None]
    tokens = torch.tensor(tokens, dtype=torch.float32)
    f = coder.eval().encode(tokens).detach()
    fires = (f > 0).float().mean(1).numpy()
    codes = prompt_interventions.Codes(
        tokens.mean(1).numpy(), f.mean(1).numpy(), fires, truth, coder.b_dec.detach().numpy()
    )
    judge = LogisticRegression(C=0.1).fit(codes.x[::2], label[::2])
    given = {name: codes.f[::2][label[::2] == name].mean(axis=0) for name in NAMES}
    return coder, tokens, codes, label, judge, given


@pytest.mark.parametrize("way", prompt_interventions.WAYS)
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
    np.testing.assert_allclose(prompt_interventions.changed(codes, mine, way, given["sad"]), want, atol=1e-5)


def test_nothing_changed_changes_nothing(world):
    codes = world[2]
    assert np.array_equal(prompt_interventions.changed(codes, [], "silenced"), codes.x)
    with pytest.raises(ValueError, match="'louder' is not one of silenced"):
        prompt_interventions.changed(codes, [], "louder")


def rest(codes, label):
    """The texts that are judged and the others, as `interventions` takes them."""
    judged = np.arange(len(label)) % 2 == 1
    return codes.only(judged), label[judged], codes.only(~judged), label[~judged]


def test_true_features_are_causes_and_others_are_not(world):
    _, _, codes, label, judge, _ = world
    codes = with_controls(codes, [5, 9])
    tested = prompt_interventions.interventions(judge, *rest(codes, label), {"calm": [5], "sad": [9]}, draws=200)
    told = tested.table
    assert not tested.refusals and (told.p <= 0.2).all() and len(told) == 6  # one feature of six: no p is below 1 / 6
    silenced = told[told.way == "silenced"]
    assert (silenced.after < silenced.low).all() and (silenced.control > silenced.before - 0.1).all()
    assert (told.after > told.high)[told.way == "transplanted"].all()
    assert (tested.ratios.controls >= prompt_interventions.LEAST_CONTROLS).all()
    assert prompt_interventions.interventions(judge, *rest(codes, label), {"calm": []}).table.empty


def with_controls(codes, targets, n=10):
    """The same with n more features for each target, that fire as often and as strongly, in random directions."""
    rng = np.random.default_rng(3)
    extra = np.repeat(targets, n)
    W = rng.normal(size=(len(extra), codes.W_dec.shape[1]))
    W *= (np.linalg.norm(codes.W_dec[extra], axis=1) / np.linalg.norm(W, axis=1))[:, None]
    f, fires = (np.concatenate([part, part[:, extra]], axis=1) for part in (codes.f, codes.fires))
    return codes._replace(f=f, fires=fires, W_dec=np.concatenate([codes.W_dec, W]))


class Judge:
    """A logistic model of two classes, faster than scikit-learn's."""

    classes_ = NAMES

    def __init__(self, direction):
        self.direction = direction

    def predict_proba(self, x):
        p = 1 / (1 + np.exp(-x @ self.direction))
        return np.column_stack([1 - p, p])


def nothing_there(seed, features=300, width=12, texts=40):
    """Codes of texts of two classes and a judge to which every feature means something, but none a class."""
    rng = np.random.default_rng(seed)
    W = rng.normal(size=(features, width))
    W /= np.linalg.norm(W, axis=1, keepdims=True)
    fires = (rng.uniform(size=(texts, features)) * rng.uniform(0.05, 0.3, features)).astype(np.float32)
    codes = prompt_interventions.Codes(rng.normal(size=(texts, width)), 2 * fires, fires, W, np.zeros(width))
    label = np.repeat(NAMES, texts // 2)
    return codes, label, Judge(3 * rng.normal(size=width))


def test_p_is_uniform_where_features_are_like_their_controls():
    p = []
    for seed in range(60):
        codes, label, judge = nothing_there(seed)
        mine = np.random.default_rng([seed, 1]).permutation(300)[:3]
        told = prompt_interventions.interventions(judge, *rest(codes, label), {"calm": mine}, draws=39, seed=seed).table
        p.append(told.set_index("way").p)
    p = pd.DataFrame(p)
    assert (p.mean() > 0.5 - 4 * 0.29 / np.sqrt(60)).all() and (p.mean() < 0.5 + 4 * 0.29 / np.sqrt(60)).all()
    assert ((p <= 0.05).mean() <= 0.05 + 4 * np.sqrt(0.05 * 0.95 / 60)).all()


def test_controls_fire_as_often_and_remove_as_much():
    """The nearest in rate × size alone, as before, may fire a tenth as often: here each target has ten such decoys."""
    codes, label, judge = nothing_there(0)
    decoys = codes._replace(f=codes.f[:, :10], fires=codes.fires[:, :10] / 10, W_dec=codes.W_dec[:10])
    both = [np.concatenate([getattr(codes, part), getattr(decoys, part)], axis=axis)
            for part, axis in (("f", 1), ("fires", 1), ("W_dec", 0))]  # fmt: skip
    codes = codes._replace(f=both[0], fires=both[1], W_dec=both[2])
    tested = prompt_interventions.interventions(judge, *rest(codes, label), {"calm": [0, 1], "sad": [2]}, draws=5)
    rate, size = codes.only((label == "calm") & (np.arange(40) % 2 == 0)).strength()
    for near in controls.disjoint(rate, size, [0, 1], range(310), prompt_interventions.CONTROLS):
        assert len(near) == 10 and near.max() < 300
    assert (np.log(tested.ratios[["rate", "rate × size"]]).abs() <= controls.CALIPER).all(axis=None)
    assert (tested.balance["|log ratio|"] <= controls.MOST_IMBALANCE).all() and not tested.refusals


def test_without_matched_controls_nothing_is_claimed():
    codes, label, judge = nothing_there(0)
    strong = codes._replace(f=codes.f.copy(), fires=codes.fires.copy())
    strong.f[:, :2] *= 40  # no other feature removes nearly as much
    none = prompt_interventions.interventions(judge, *rest(strong, label), {"calm": [0, 1], "sad": [5]}, draws=9)
    assert none.refusals == {"calm": "No matched controls: none of 2 features has 5 within the caliper."}
    table = none.table.set_index("class")
    assert table.p["calm"].isna().all() and table.control["calm"].isna().all() and table.p["sad"].notna().all()
    assert none.balance.set_index("class").loc["calm", ["features", "left out"]].tolist() == [0, 2]
    some = prompt_interventions.interventions(judge, *rest(strong, label), {"calm": [0, 5]}, draws=9)
    assert not some.refusals and set(some.table.features) == {1} and some.balance["left out"].tolist() == [1]
    worse = codes._replace(f=codes.f.copy(), fires=codes.fires.copy())
    worse.f[:, 6:], worse.fires[:, 6:] = 0, 0
    worse.fires[:, :6] = 0.2
    worse.f[:, :6] = 0.4 * np.array([1, *[1.5] * 5])
    apart = prompt_interventions.interventions(judge, *rest(worse, label), {"calm": [0]}, draws=9)
    assert apart.refusals == {"calm": "No matched controls: the median |log ratio| is 0.41, above 0.3."}
    assert apart.table.p.isna().all()


def test_a_true_vector_steers_and_random_ones_do_not(world):
    _, _, codes, label, judge, _ = world
    vectors = {
        "feature": {"calm": codes.W_dec[5], "sad": codes.W_dec[9]},
        "wrong": {"calm": codes.W_dec[0], "sad": codes.W_dec[1]},
    }
    told = prompt_interventions.steered(judge, codes.x, label, vectors, [0.0, 2.0], draws=50).set_index(
        ["class", "vector", "alpha"]
    )
    for name in NAMES:
        assert told.rise[name, "feature", 0.0] == 0
        assert told.rise[name, "feature", 2.0] > told.p95[name, "random", 2.0]
        assert told.rise[name, "feature", 2.0] > told.rise[name, "wrong", 2.0] + 0.1


def test_the_file_is_what_the_three_lines_need(tmp_path):
    """The lines of the example, on a small T5: α = 0 changes nothing, else the states move by α along the vector."""
    path = prompt_interventions.save(
        tmp_path / "steering.safetensors", {"happy": np.full(32, 3.0)}, {"site": "s", "alpha": 2.0}
    )
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"site": '"s"', "alpha": "2.0", "example": prompt_interventions.EXAMPLE}
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
        prompt_interventions.save(tmp_path / "bad.safetensors", {"a": np.zeros(3)}, {})


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
    ways = pd.DataFrame(
        [(name, way, p) for name in NAMES for way in prompt_interventions.WAYS], columns=["class", "way", "p"]
    )
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
    good = criteria.table(**told_of(30))
    bad = criteria.table(**told_of(0, share=0.2, p=0.5))
    assert (good.passes == "pass").all() and (bad.passes == "fail").all()
    assert len(good) == 11 and good["as published"].str.len().min() > 3
    causes = told_of(30)["causes"].assign(p=lambda t: t.p.where(t["class"] == "sad"))
    part = criteria.table(**told_of(30) | {"causes": causes}).set_index("must have")
    assert part.passes["they are causes"] == "fail"
    assert part.value["they are causes"] == "3 of 6; worst p = 0.01; 3 without matched controls"
    few = criteria.table(**told_of(9)).set_index("must have").passes
    assert few["each emotion has features"] == "fail" and few["they hold without the words"] == "pass"
