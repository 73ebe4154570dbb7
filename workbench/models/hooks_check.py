"""Whether a model's hooks mean what editors take them for, seen on ordinary text."""

import torch

from workbench.models.model import Model
from workbench.models.ordinary import LENGTH, ordinary_ids, relative_error, tolerance
from workbench.models.tokens import Tokens


def ordinary_tokens(model: Model, length: int, *, rows: int = 1) -> Tokens:
    """Ordinary text of so many tokens, in several equal rows."""
    ids = torch.tensor([ordinary_ids(model.tokenizer, length)] * rows, device=model.device)
    first = torch.zeros(rows, dtype=torch.long, device=model.device)
    last = first + length - 1
    return Tokens(ids=ids, mask=torch.ones_like(ids), offsets=(), starts=first, lasts=last, prompt_ends=last)


@torch.no_grad()
def hook_faults(model: Model) -> dict[str, str]:
    """By site, what is wrong with it, in words; only sites that have a fault.

    `mlp_write`: in every layer it should be mlp_key @ W_out + b_out, which edits of W_out rely on. `resid_post`: it
    should be resid_pre + attn_out + mlp_out, with mlp_out what `mlp_contribution` makes of mlp_write, which editors
    rely on that spread a change of it over layers. It is the model itself that is asked, without the hooks of edits.
    """
    sites = ("mlp_key", "mlp_write", "mlp_out", "attn_out", "resid_pre", "resid_post")
    names = {(site, layer): model.hook_name(site, layer) for layer in range(model.n_layers) for site in sites}
    applied, model.edits[:] = list(model.edits), []
    try:
        found = model.activations(ordinary_tokens(model, min(LENGTH, model.n_ctx)), list(names.values()))
    except RuntimeError as error:
        if "never fired" not in str(error):
            raise
        return dict.fromkeys(("mlp_write", "resid_post"), str(error))
    finally:
        model.edits[:] = applied
    faults: dict[str, str] = {}
    for layer in range(model.n_layers):
        key, write, mlp, attn, before, after = (found[names[site, layer]] for site in sites)
        try:
            bias = model.weight(layer, "b_out")[0].to(write)
        except ValueError:
            bias = write.new_zeros(())
        added = model.mlp_contribution(layer)(write)
        for site, seen, expected, rule in (
            ("mlp_write", write, key @ model.weight(layer).to(key) + bias, "mlp_key @ W_out + b_out"),
            ("resid_post", after, before + attn + added, "resid_pre + attn_out + what the MLP adds"),
            ("resid_post", mlp, added, "what the MLP adds"),
        ):
            error = relative_error(seen, expected)
            if error > tolerance(model.dtype):
                name = "mlp_out" if seen is mlp else site
                told = f"in layer {layer} of {model.name} {name} is not {rule} ({error:.2g} of its size away)"
                faults.setdefault(site, told)
    return faults
