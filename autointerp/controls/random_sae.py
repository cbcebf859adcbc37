"""The control random_sae: the run again with the SAE's directions drawn anew, on the same subject.

What its features score, any directions of that subject's activations would. Norms, the cosine between a latent's
encoder and decoder, and how often each latent fires are the SAE's own (`sae.redraw`).
"""

from __future__ import annotations

from autointerp.config import Config, RedrawnSae
from autointerp.plugins import control


@control("random_sae", runs_again=True)
def change(config: Config, *, seed: int) -> Config:
    """The config of the run with a redrawn SAE."""
    kept = {name: getattr(config.sae, name) for name in type(config.sae).model_fields}
    return config.model_copy(update={"sae": RedrawnSae(**kept, seed=seed)})
