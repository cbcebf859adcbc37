"""autointerp: explain the features of sparse autoencoders, and say how far each explanation can be trusted."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Arrow reads this at its import. Its own allocator keeps what was freed for each of its threads, and cannot be told to
# give it back: .1 GB in a run over 100,000 features.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")

if TYPE_CHECKING:
    from autointerp.commands.folder import Run as Run
    from autointerp.commands.folder import open_run as open_run
    from autointerp.commands.run import arun as arun
    from autointerp.commands.run import run as run
    from autointerp.commands.together import harvest_together as harvest_together
    from autointerp.commands.train import evaluate as evaluate
    from autointerp.commands.train import train as train
    from autointerp.composites import find_composites as find_composites
    from autointerp.plugins import control as control
    from autointerp.plugins import explainer as explainer
    from autointerp.plugins import scorer as scorer
    from autointerp.records import LLM as LLM
    from autointerp.records import Completion as Completion
    from autointerp.records import Context as Context
    from autointerp.records import Explanation as Explanation
    from autointerp.records import FeatureEvidence as FeatureEvidence
    from autointerp.records import Judgement as Judgement
    from autointerp.records import Message as Message
    from autointerp.records import Score as Score
    from autointerp.sae import load_sae as load_sae

# Imported when first asked for: `import autointerp` stays light.
_WHERE = {
    "run": "autointerp.commands.run",
    "arun": "autointerp.commands.run",
    "open_run": "autointerp.commands.folder",
    "Run": "autointerp.commands.folder",
    "harvest_together": "autointerp.commands.together",
    "train": "autointerp.commands.train",
    "evaluate": "autointerp.commands.train",
    "load_sae": "autointerp.sae",
    "find_composites": "autointerp.composites",
    **dict.fromkeys(("explainer", "scorer", "control"), "autointerp.plugins"),
    **dict.fromkeys(
        ("LLM", "Completion", "Context", "Explanation", "FeatureEvidence", "Judgement", "Message", "Score"),
        "autointerp.records",
    ),
}
__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'autointerp' has no attribute {name!r}")
