"""``autointerp geometry``: how a dictionary's directions lie, as geometry.json and a picture."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from autointerp.artifacts import write_atomically

if TYPE_CHECKING:
    import numpy as np
    import torch

    from autointerp.composites.geometry_report import GeometryReport


def geometry_report(
    W_dec: np.ndarray | torch.Tensor,
    out: Path,
    *,
    other: np.ndarray | torch.Tensor | None = None,
    meta_passes: int = 50,
    seed: int = 0,
    device: str = "cpu",
) -> GeometryReport:
    """Write ``geometry.json`` and ``geometry.png`` into the folder `out`; the arguments are `geometry_figures`'."""
    from autointerp.composites.geometry_report import geometry_figures
    from autointerp.report.geometry import draw

    report = geometry_figures(W_dec, other=other, meta_passes=meta_passes, seed=seed, device=device)
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(asdict(report), indent=1) + "\n"
    write_atomically(out / "geometry.json", lambda path: path.write_text(text))
    write_atomically(out / "geometry.png", lambda path: draw(out / "geometry.json", path))
    return report
