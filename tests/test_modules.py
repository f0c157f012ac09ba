"""Any torch module is heard by the same hooks into the same store; and what learns from it knows nothing of speech."""

import numpy as np
import pytest
import torch
from torch import nn

from whisper_sae.activations import modules, store

WIDTH = 8


class Toy(nn.Module):
    """Embeds letters and mixes them twice; a module that is never called; one that gives a tuple."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(30, WIDTH)
        self.layers = nn.ModuleList([nn.Linear(WIDTH, WIDTH), nn.GRU(WIDTH, WIDTH, batch_first=True)])
        self.unused = nn.Linear(1, 1)
        self.pool = nn.Linear(WIDTH, 3)
        self.calls = 0

    def forward(self, letters, shift=0.0):
        x = self.layers[1](self.layers[0](self.embed(letters)) + shift)[0]
        self.calls += 1
        return self.pool(x.mean(dim=1))


@pytest.fixture
def toy():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Toy().eval()


WORDS = ["lugal", "e", "mina", "ak", "sheep", "barley"]


def letters(words):
    longest = max(map(len, words))
    told = [[ord(letter) - 96 for letter in word] + [0] * (longest - len(word)) for word in words]
    return torch.tensor(told)


def collate(words):
    given = letters(words)
    return {"letters": given}, given > 0


def test_what_is_stored_is_what_the_module_says_and_padding_is_not(toy, tmp_path):
    facts = modules.write(tmp_path, toy, WORDS, ["layers.0", "layers.1"], collate, positions=6, batch=2, shard=4)
    held = store.Activations(tmp_path)
    assert held.sites == {"layers.0": WIDTH, "layers.1": WIDTH} and facts["frames"] == sum(map(len, WORDS))
    assert held.counts.tolist() == [len(word) for word in WORDS]
    for number, word in enumerate(WORDS):
        alone = modules.record(toy, letters([word]), ["layers.0", "layers.1"])
        np.testing.assert_allclose(held.window("layers.0", number), alone["layers.0"][0], atol=1e-3)
        np.testing.assert_allclose(held.window("layers.1", number), alone["layers.1"][0], atol=1e-3)


def test_one_at_a_time_and_many_at_a_time_store_the_same(toy, tmp_path):
    for name, batch in (("one", 1), ("many", 6)):
        modules.write(tmp_path / name, toy, WORDS, ["layers.1"], collate, positions=6, batch=batch, dtype="float32")
    one, many = (store.Activations(tmp_path / name).rows("layers.1") for name in ("one", "many"))
    torch.testing.assert_close(one.take(np.arange(len(one))), many.take(np.arange(len(many))))


def test_a_store_that_was_cut_off_goes_on_and_the_net_is_not_loaded_for_nothing(toy, tmp_path):
    loads = []

    def load():
        loads.append(1)
        return toy

    def dies(batches, **_how):
        for number, batch in enumerate(batches):
            if number == 4:
                raise KeyboardInterrupt
            yield batch

    how = {"positions": 6, "shard": 2}
    with pytest.raises(KeyboardInterrupt):
        modules.write(tmp_path, load, WORDS, ["layers.0"], collate, progress=dies, **how)
    assert (tmp_path / "shard-00000").exists() and not (tmp_path / "index.json").exists()
    modules.write(tmp_path, load, WORDS, ["layers.0"], collate, **how)
    modules.write(tmp_path, load, WORDS, ["layers.0"], collate, **how)
    assert len(loads) == 2 and store.Activations(tmp_path).counts.sum() == sum(map(len, WORDS))


def test_inputs_may_be_a_tensor_a_tuple_or_named(toy):
    given = letters(WORDS[:1])
    plain, named, shifted = (
        modules.record(toy, inputs, ["layers.1"])["layers.1"]
        for inputs in (given, {"letters": given}, (given, 1.0))
    )  # fmt: skip
    assert torch.equal(plain, named) and not torch.equal(plain, shifted)


def test_nothing_is_computed_beyond_what_was_wanted(toy):
    modules.record(toy, letters(WORDS), ["layers.0"])
    assert toy.calls == 0
    toy(letters(WORDS))
    assert toy.calls == 1


def test_the_input_of_a_module_is_a_site_too(toy):
    said = modules.record(toy, letters(WORDS), ["layers.1:in", "layers.0"])
    assert torch.equal(said["layers.1:in"], said["layers.0"])


def test_a_site_can_be_answered_for_and_hooks_leave(toy):
    given = letters(WORDS)
    clean = toy(given)
    with modules.at(toy, {"layers.0": lambda hidden: hidden}):
        assert torch.equal(toy(given), clean)
    with modules.at(toy, {"layers.1": lambda hidden: torch.zeros_like(hidden)}):
        assert torch.equal(toy(given), toy.pool.bias.expand(len(WORDS), 3))
    assert torch.equal(toy(given), clean) and not toy.layers[1]._forward_hooks


def test_one_row_an_item_is_one_position_and_other_shapes_have_to_be_told(toy, tmp_path):
    assert modules.record(toy, letters(WORDS), ["pool"])["pool"].shape == (len(WORDS), 1, 3)
    net, images = nn.Sequential(nn.Conv2d(1, 4, 3)), [torch.rand(1, 6, 6) for _ in range(3)]

    def stacked(some):
        return torch.stack(some), None

    with pytest.raises(modules.BadSite, match=r"site: 0 says \(1, 4, 4, 4\).* give as_rows"):
        modules.write(tmp_path / "a", net, images, ["0"], stacked, positions=16)
    modules.write(
        tmp_path / "b", net, images, ["0"], stacked, positions=16, as_rows=lambda _, x: x.flatten(2).mT,
    )  # fmt: skip
    assert store.Activations(tmp_path / "b").counts.tolist() == [16, 16, 16]


@pytest.mark.parametrize(
    ("wanted", "said"),
    [("layer.0", "matches no module.* such as embed"), ("unused", "unused is never called")],
)
def test_a_wrong_site_is_named(toy, wanted, said):
    with pytest.raises(modules.BadSite, match=said) as error:
        modules.record(toy, letters(WORDS), modules.sites(toy, [wanted]))
    assert "\n" not in str(error.value)


def test_patterns_give_sites_in_the_order_of_the_net(toy):
    assert modules.sites(toy, ["layers.*", "embed"]) == ["embed", "layers.0", "layers.1"]


def test_what_was_foretold_or_marked_wrongly_is_refused(toy, tmp_path):
    with pytest.raises(ValueError, match="items 0-0 have 5; 4 were foretold"):
        modules.write(tmp_path / "a", toy, WORDS, ["layers.0"], collate, positions=4)
    with pytest.raises(modules.BadSite, match="the kinds are"):
        modules.write(tmp_path / "b", toy, WORDS, ["layers.0"], lambda w: (letters(w), [[True]]), positions=6)


def test_what_is_not_finite_is_refused_though_nobody_marked_padding(toy, tmp_path):
    with torch.no_grad():
        toy.embed.weight[1] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        modules.write(tmp_path, toy, ["banana"], ["embed"], lambda w: (letters(w), None), positions=6)


# ------------------------------------------------------------------------------------------- nothing of it is speech
