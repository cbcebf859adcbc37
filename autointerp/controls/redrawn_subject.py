"""The control redrawn_subject: the run again with a subject of the same architecture that has learned nothing.

Explanations of SAEs on random transformers score about as well as those on trained ones (2501.17727), so a score says
something about the trained model only by what it is above this. The subject's tensors are drawn anew, each with its own
mean and spread (`subject.redraw`); an SAE is trained on what that subject computes; features are drawn, explained and
scored as the run's are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autointerp.config import Config
from autointerp.errors import ConfigError
from autointerp.plugins import control
from autointerp.sae.describe import Description, describe


@control("redrawn_subject", runs_again=True)
def change(config: Config, *, embeddings: bool = True, train: Mapping[str, Any] | None = None, seed: int) -> Config:
    """The config of the run with a redrawn subject, and an SAE that is trained on it.

    `embeddings`: they are drawn anew too; without, they and the unembedding are kept. `train`: keys of `sae.train` that
    go before what else tells how to train: the run's own `sae.train`; of a loaded SAE its width and k, and the config
    that its training left beside it. Raises ConfigError where they do not suffice.
    """
    redrawn = f"{'redrawn' if embeddings else 'redrawn_blocks'}:{seed % 2**63}"
    hook, training = config.subject.hook, config.sae.train
    if training is None:
        path = Path(config.sae.load or "").expanduser()
        loaded = describe(path)
        hook, training = hook or loaded.hook_name, _training_of(path, loaded)
        if train is None and "tokens" not in training:
            raise ConfigError(
                f"control redrawn_subject trains an SAE on the redrawn subject, and {config.sae.load} does not say how"
                " it was trained: add to the control train: {architecture: …, d_sae: …, k: …, tokens: …}"
            )
        if hook is None:
            raise ConfigError("control redrawn_subject trains an SAE on the redrawn subject: name subject.hook")
    subject = config.subject.model_copy(update={"weights": redrawn, "hook": hook})
    sae = config.sae.model_copy(update={"load": None, "format": None, "train": {**training, **(train or {})}})
    return config.model_copy(update={"subject": subject, "sae": sae})


def _training_of(path: Path, loaded: Description) -> dict[str, Any]:
    """`sae.train` as a loaded SAE's files tell it."""
    try:
        training = dict(json.loads((path / "train.json").read_text())["config"])
    except (OSError, ValueError, KeyError, TypeError):
        training = {}
    shape = {"d_sae": loaded.d_sae, "k": loaded.k}
    return training | {name: value for name, value in shape.items() if value is not None}
