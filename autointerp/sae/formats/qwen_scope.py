"""SAE format Qwen Scope: ``layerN.sae.pt`` of a TopK SAE, linear layers' orientation; k is in the repository's name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from autointerp.errors import AutointerpError
from autointerp.sae.formats.files import dtype_name, exactly, read_pickle
from autointerp.sae.model import SAEConfig

if TYPE_CHECKING:
    from torch import Tensor

_NAMES = {"W_encᵀ": "W_enc", "b_enc": "b_enc", "W_decᵀ": "W_dec", "b_dec": "b_dec"}
_FILE = re.compile(r"layer(\d+)\.sae\.pt")
_REPOSITORY = re.compile(r"SAE-Res-(.+?)-W\d+K-L0_(\d+)")


class _QwenScope:
    def detect(self, path: Path) -> bool:
        return path.is_file() and _FILE.fullmatch(path.name) is not None

    def load(self, path: Path) -> tuple[SAEConfig, dict[str, Tensor]]:
        stored = read_pickle(path)
        weights = exactly(stored, _NAMES, path)
        file, repository = _FILE.fullmatch(path.name), _REPOSITORY.search(str(path.absolute().parent))
        if repository is None:
            raise AutointerpError(
                f"{path}: its k stands only in the repository's name: keep it in a folder SAE-Res-MODEL-W32K-L0_50"
            )
        d_in, d_sae = weights["W_enc"].shape
        return SAEConfig(
            architecture="topk",
            d_in=d_in,
            d_sae=d_sae,
            source_format="qwen_scope",
            dtype=dtype_name(stored["W_enc"]),
            apply_b_dec_to_input=False,
            k=int(repository[2]),
            hook_name=f"blocks.{file[1]}.hook_resid_post" if file else None,
            model_name=f"Qwen/{repository[1]}",
        ), weights


FORMAT = _QwenScope()
