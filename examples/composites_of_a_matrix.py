"""Find composite features in a bare decoder matrix: no language model, no text, no SAE file.

python examples/composites_of_a_matrix.py
"""

from __future__ import annotations

import numpy as np

import autointerp as ai


def planted(latents: int = 400, width: int = 128, composites: int = 10, seed: int = 0) -> np.ndarray:
    """Random unit directions [latents, width]; the first `composites` are sums of two others."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((latents, width))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    for i in range(composites):
        rows[i] = rows[composites + 2 * i] + 0.8 * rows[composites + 2 * i + 1]
    return rows


if __name__ == "__main__":
    table = ai.find_composites(planted())
    flagged = table[table["label"].isin(["composite", "possible"])]
    print(table["label"].value_counts())
    print(flagged[["feature", "label", "constituents", "coefficients", "r2"]].to_string(index=False))
