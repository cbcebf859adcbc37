import pytest

from autointerp.records import Context


@pytest.fixture
def held_out():
    """100 test windows of a feature that fires on " dog": 50 firing over 5 quantiles, 25 random, 25 near."""
    contexts = []
    for i in range(100):
        kind = "activating" if i < 50 else "random" if i < 75 else "near"
        quantile = i % 5 if i < 50 else None
        place = 1 + i % 6
        tokens = ["Once", " there", " was", " a", " big", " tree", ".", "\n", f" {i}"]
        activations = [0.0] * len(tokens)
        if kind == "activating":
            tokens[place], activations[place] = " dog", 1.0 + quantile
        elif kind == "near":
            tokens[place] = " cat"
        contexts.append(Context(7, i, "test", kind, quantile, i, 0, tuple(tokens), tuple(activations)))
    return contexts
