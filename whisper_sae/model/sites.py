"""Named places inside Whisper, and what others call them.

With `i` a layer, counted from 0, in `encoder` or `decoder`; what OpenAI's code calls the place is on the right:

    encoder.embed          what goes into layer 0                     d_model
    encoder.i.heads        what each head says, one after the other   d_model   (into blocks.i.attn.out)
    encoder.i.attn         what self-attention adds                   d_model   blocks.i.attn
    decoder.i.cross_heads  the heads of cross-attention               d_model   (into blocks.i.cross_attn.out)
    decoder.i.cross        what cross-attention adds                  d_model   blocks.i.cross_attn
    encoder.i.mlp_in       what the MLP reads, after its layer norm   d_model   blocks.i.mlp_ln
    encoder.i.mlp_pre      the MLP's neurons, before GELU             ffn_dim   blocks.i.mlp.0
    encoder.i.mlp_hidden   the MLP's neurons, after GELU              ffn_dim   blocks.i.mlp.1
    encoder.i.mlp          what the MLP adds                          d_model   blocks.i.mlp, blocks.i.mlp.2
    encoder.i.resid        the residual stream after layer i          d_model   blocks.i
    encoder.i.normed       the same under the final layer norm        d_model   (the last: ln_post, decoder.ln)

`x.unflatten(-1, (heads, -1))` parts what the heads say into (…, head, width of a head). `mlp_in` and `mlp` are the two
sides of the MLP, as a transcoder wants them. `normed` holds nothing that `resid` does not, so only a pattern that ends
in that word gives it: `*` does not.
"""

import fnmatch
import re

PARTS = ("heads", "attn", "cross_heads", "cross", "mlp_in", "mlp_pre", "mlp_hidden", "mlp", "resid", "normed")
"""Of a layer, in the order of the model; the encoder has no `cross`."""

ALIASES = {
    "": "resid",
    "attn": "attn", "attn.out": "attn", "cross_attn": "cross", "cross_attn.out": "cross",
    "mlp_ln": "mlp_in", "mlp": "mlp", "mlp.0": "mlp_pre", "mlp.1": "mlp_hidden", "mlp.2": "mlp",
    "self_attn": "attn", "self_attn.out_proj": "attn", "encoder_attn": "cross", "encoder_attn.out_proj": "cross",
    "final_layer_norm": "mlp_in", "fc1": "mlp_pre", "fc2": "mlp",
}  # fmt: skip
"""Modules of a block by the names of OpenAI's code, then of transformers', and the site that each one says."""


class BadSite(ValueError):
    """A name or pattern that no site of the model has; one line, with the right names."""


def ours(name: str) -> str:
    """The name or pattern as this project has it: `encoder.blocks.2.mlp.1` is `encoder.2.mlp_hidden`.

    Names of OpenAI's modules (`blocks`) and of transformers' (`layers`) are known; others come back as they are.
    """
    if name in ("encoder.ln_post", "encoder.layer_norm"):
        return "encoder.last.normed"
    if name in ("decoder.ln", "decoder.layer_norm"):
        return "decoder.last.normed"
    found = re.fullmatch(r"(encoder|decoder)\.(?:blocks|layers)\.([^.]+)\.?(.*)", name.removeprefix("model."))
    return f"{found[1]}.{found[2]}.{ALIASES[found[3]]}" if found and found[3] in ALIASES else name


def every(config) -> dict[str, int]:
    """All sites of a model by its configuration, in order, with their widths."""
    found = {}
    for side, layers, ffn in [
        ("encoder", config.encoder_layers, config.encoder_ffn_dim),
        ("decoder", config.decoder_layers, config.decoder_ffn_dim),
    ]:
        found[f"{side}.embed"] = config.d_model
        for layer in range(layers):
            for part in PARTS:
                if side == "decoder" or not part.startswith("cross"):
                    found[f"{side}.{layer}.{part}"] = ffn if part in ("mlp_pre", "mlp_hidden") else config.d_model
    return found


def matching(config, wanted=("*",)) -> dict[str, int]:
    """The sites that match any of the names or patterns `wanted`, in the order of the model, with their widths.

    Raises BadSite for a pattern that matches nothing.
    """
    there, chosen = every(config), set()
    for asked in wanted:
        pattern = _counted(config, ours(asked))
        derived = pattern.endswith(".normed")
        found = [site for site in fnmatch.filter(there, pattern) if derived or not site.endswith(".normed")]
        if not found:
            raise BadSite(
                f"sites: {asked!r} matches nothing; this model has encoder.0 … {config.encoder_layers - 1} and "
                f"decoder.0 … {config.decoder_layers - 1}, each with {', '.join(PARTS)} (cross only in the decoder), "
                "and encoder.embed, decoder.embed; blocks and their parts may have OpenAI's names, as "
                f"encoder.blocks.0 or encoder.blocks.0.mlp.1; parts: {', '.join(filter(None, ALIASES))}"
            )
        chosen |= set(found)
    return {site: width for site, width in there.items() if site in chosen}


def one(config, name: str) -> str:
    """The one site of that name. Raises BadSite for a pattern, or where there is none."""
    site = _counted(config, ours(name))
    if site not in every(config):
        matching(config, [name])  # raises, with the list of right names
        raise BadSite(f"site: {name!r} is a pattern; one name is wanted here")
    return site


def _counted(config, name: str) -> str:
    """The last layer by its number: the final layer norm says what it hears of that one."""
    for side, layers in (("encoder", config.encoder_layers), ("decoder", config.decoder_layers)):
        name = re.sub(rf"^{side}\.last\.", f"{side}.{layers - 1}.", name)
    return name
