"""Sites have one name each, others' names lead to them, and what patterns gave they still give."""

import types

import pytest

from whisper_sae.model import sites

CONFIG = types.SimpleNamespace(
    d_model=8, encoder_layers=2, decoder_layers=3, encoder_ffn_dim=16, decoder_ffn_dim=32
)  # fmt: skip


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("encoder.blocks.2", "encoder.2.resid"),
        ("encoder.blocks.2.attn", "encoder.2.attn"),
        ("encoder.blocks.2.mlp.0", "encoder.2.mlp_pre"),
        ("encoder.blocks.2.mlp.1", "encoder.2.mlp_hidden"),
        ("encoder.blocks.2.mlp.2", "encoder.2.mlp"),
        ("encoder.blocks.*.mlp", "encoder.*.mlp"),
        ("encoder.blocks.2.mlp_ln", "encoder.2.mlp_in"),
        ("encoder.ln_post", "encoder.last.normed"),
        ("decoder.ln", "decoder.last.normed"),
        ("decoder.blocks.1.cross_attn", "decoder.1.cross"),
        ("decoder.blocks.?", "decoder.?.resid"),
        ("decoder.layers.1.encoder_attn", "decoder.1.cross"),
        ("model.encoder.layers.1.fc1", "encoder.1.mlp_pre"),
        ("encoder.2.resid", "encoder.2.resid"),
        ("encoder.blocks.2.nothing", "encoder.blocks.2.nothing"),
        ("*", "*"),
    ],
)
def test_names_of_others(theirs, ours):
    assert sites.ours(theirs) == ours
    assert sites.ours(ours) == ours


def test_patterns_give_what_they_gave():
    assert list(sites.matching(CONFIG, ["encoder.*.resid"])) == ["encoder.0.resid", "encoder.1.resid"]
    assert list(sites.matching(CONFIG, ["*.mlp_hidden"]).values()) == [16, 16, 32, 32, 32]
    assert list(sites.matching(CONFIG, ["decoder.*.cross"])) == [f"decoder.{i}.cross" for i in range(3)]


def test_the_order_is_that_of_the_model_whatever_is_asked_first():
    asked = ["encoder.blocks.1", "encoder.0.mlp_in", "encoder.embed"]
    assert list(sites.matching(CONFIG, asked)) == ["encoder.embed", "encoder.0.mlp_in", "encoder.1.resid"]


def test_normed_is_given_only_to_those_who_say_it():
    assert not any(site.endswith("normed") for site in sites.matching(CONFIG))
    assert list(sites.matching(CONFIG, ["encoder.*.normed"])) == ["encoder.0.normed", "encoder.1.normed"]
    assert sites.one(CONFIG, "decoder.ln") == "decoder.2.normed"


@pytest.mark.parametrize("asked", ["encoder.blocks.7", "encoder.0.cross", "encoder.blocks.0.nothing", "nothing"])
def test_a_wrong_name_is_told_the_right_ones(asked):
    for look in (lambda: sites.matching(CONFIG, ["*", asked]), lambda: sites.one(CONFIG, asked)):
        with pytest.raises(
            sites.BadSite, match=r"encoder\.0 … 1 and decoder\.0 … 2.*mlp_in.*encoder\.blocks\.0"
        ) as said:
            look()
        assert repr(asked) in str(said.value) and "\n" not in str(said.value)


def test_a_pattern_is_not_one_site():
    with pytest.raises(sites.BadSite, match="is a pattern"):
        sites.one(CONFIG, "encoder.blocks.*")
