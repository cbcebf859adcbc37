"""SAELens' list of published SAEs (its ``pretrained_saes.yaml``): which files an entry has, what only the list says.

The list comes with the package sae-lens (``pip install 'autointerp-sae[saelens]'``), which is read and not imported.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autointerp.errors import ConfigError
from autointerp.registry import did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

    from autointerp.sae.model import SAEConfig

log = logging.getLogger("autointerp")

SAELENS = "sae_lens"  # the loader of entries that name none
# Loaders of SAELens whose files a format of ours reads. SAELens itself converts the files of any other.
READ = (
    *(SAELENS, "connor_rob_hook_z", "gemma_2", "gemma_3", "llama_scope", "llama_scope_r1_distill", "sparsify"),
    *("dictionary_learning_1", "deepseek_r1", "qwen_scope", "gemma_2_transcoder", "mwhanna_transcoder"),
    *("mntss_clt_layer_transcoder", "temporal", "goodfire"),
)
_FACTS = {"hook_name": "hook_name", "model_name": "model_name", "dataset_path": "dataset"}


@dataclass(frozen=True)
class Listed:
    """An entry of the list."""

    release: str
    sae_id: str
    repo: str
    path: str  # in the repository: a folder, a file, or for some loaders the stem of names
    loader: str
    norm_factor: float | None  # √d over the inputs' average norm in training, where the files lack it
    overrides: dict[str, Any]  # of the files' config

    @property
    def target(self) -> str:
        """The file or folder in the repository that a format reads."""
        if self.loader == "mntss_clt_layer_transcoder":
            return f"W_enc_{self.path}.safetensors"
        if self.loader == "gemma_3" and "clt" in self.path:
            return f"{self.path}.safetensors"
        return self.path

    @property
    def patterns(self) -> list[str]:
        """Names in the repository, as glob patterns, of the files that are needed."""
        beside = {
            "connor_rob_hook_z": [f"{self.path.split('.pt')[0]}_cfg.json"],
            "mwhanna_transcoder": ["config.yaml"],
            "mntss_clt_layer_transcoder": [f"W_dec_{self.path}.safetensors", "config.yaml"],
        }
        return [self.target, f"{self.target}/*", *beside.get(self.loader, [])]

    def complete(self, cfg: SAEConfig, tensors: dict[str, Tensor]) -> tuple[SAEConfig, dict[str, Tensor]]:
        """What the files say, with what only the list says: facts, the normalisation, the average norm's factor."""
        facts = {ours: self.overrides[theirs] for theirs, ours in _FACTS.items() if self.overrides.get(theirs)}
        if kept := self.overrides.get("model_from_pretrained_kwargs"):
            log.warning("%s/%s was trained on its model loaded with %s", self.release, self.sae_id, kept)
        if normalisation := self.overrides.get("normalize_activations"):
            facts["normalize_activations"] = normalisation
        if cfg.expects_average_norm and self.norm_factor is not None:
            tensors = tensors | {
                "W_enc": tensors["W_enc"] * self.norm_factor,
                "W_dec": tensors["W_dec"] / self.norm_factor,
                "b_dec": tensors["b_dec"] / self.norm_factor,
            }
            facts["expects_average_norm"] = False
        return replace(cfg, **facts), tensors


def find(release: str, sae_id: str) -> Listed:
    """Raises ConfigError, with the nearest id, where the release has no such SAE."""
    about = releases()[release]
    known = {str(sae["id"]): sae for sae in about["saes"]}
    if sae_id not in known:
        raise ConfigError(f"the SAELens release {release!r} has no SAE {sae_id!r}{did_you_mean(sae_id, known)}")
    return _listed(release, about, known[sae_id])


def entries() -> Iterator[Listed]:
    """All of the list."""
    for release, about in releases().items():
        for sae in about["saes"]:
            yield _listed(release, about, sae)


def _listed(release: str, about: dict[str, Any], sae: dict[str, Any]) -> Listed:
    return Listed(
        release,
        str(sae["id"]),
        about["repo_id"],
        str(sae["path"]),
        about.get("conversion_func") or SAELENS,
        sae.get("norm_scaling_factor"),
        about.get("config_overrides") or {},
    )


@functools.cache
def releases() -> dict[str, Any]:
    """The list by release; {} where sae-lens is not installed."""
    package = find_spec("sae_lens")
    if package is None or not package.submodule_search_locations:
        return {}
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    file = Path(package.submodule_search_locations[0]) / "pretrained_saes.yaml"
    return yaml.load(file.read_text(), Loader=loader) if file.exists() else {}


def by_saelens(listed: Listed) -> tuple[SAEConfig, dict[str, Tensor]]:
    """An entry whose files no format of ours reads: SAELens loads it, and its module is converted.

    Raises AutointerpError where SAELens cannot load it, or its architecture is not one of ours.
    """
    from sae_lens import SAE

    from autointerp.errors import AutointerpError
    from autointerp.sae.formats.saelens import converted

    spec = f"{listed.release}/{listed.sae_id}"
    try:
        module = SAE.from_pretrained(listed.release, listed.sae_id)
    except Exception as error:  # whatever its loaders raise
        first = (str(error).strip() or "?").splitlines()[0]
        raise AutointerpError(f"SAELens cannot load {spec}: {type(error).__name__}: {first}") from error
    cfg, tensors = converted(module.cfg.to_dict(), dict(module.state_dict()), Path(spec))
    return replace(cfg, expects_average_norm=False), tensors
