"""Real weights for tests, through the catalogue: fetched once and shared by all ($AUTOINTERP_CACHE or the user's)."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

os.environ.pop("COLUMNS", None)  # where tests run side by side their controller sets it; a pipe has no width
os.environ.pop("AUTOINTERP_MIRROR", None)  # one of the machine is not for tests
# a machine that does other things too is no reason to fail
settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")


@pytest.fixture(scope="module", autouse=True)
def _collected() -> Iterator[None]:
    """What a file leaves, modules above all, is looked through once and not at each later collection."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def stories15m() -> Path:
    """The folder of the default subject (6 layers of 288, vocabulary 32,000, context 256)."""
    from autointerp.catalog import resolve

    return resolve("stories15m", "model")


@pytest.fixture(scope="session")
def toy(stories15m: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a subject of stories15M's making and tokenizer, untrained and small: 6 layers of 32."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("toy")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 6, "num_attention_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(vocab_size=32000, max_position_embeddings=256, initializer_range=0.2, **sizes)
        )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(stories15m).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The folder of SmolLM2-135M-Instruct (30 layers of 576)."""
    from autointerp.catalog import resolve

    return resolve("smollm2-135m", "model")


@pytest.fixture(scope="module")
def sae(stories15m: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a planted SAE: each of its latents fires on one token."""
    from planted import plant

    folder = tmp_path_factory.mktemp("planted")
    plant(stories15m, folder)
    return folder


@pytest.fixture(scope="module")
def own_cache(stories15m: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of the test's own, so that every stage has to work, with the real weights and texts in it."""
    from autointerp.resources import cache_dir

    cache = tmp_path_factory.mktemp("cache")
    for name in ("models", "text"):
        (cache_dir() / name).mkdir(exist_ok=True)
        (cache / name).symlink_to(cache_dir() / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOINTERP_CACHE", str(cache))
        yield cache


LONGEST = (
    "test_run_kills",
    "test_docs_walk",
    "test_cluster",
    "test_plan",
    "test_live",
    "test_composites_union",
    "test_run_survives",
    "test_keys",
    "test_sweep",
    "test_viewer_browser",
    "test_composites_evidence",
    "test_notebooks",
    "test_forward",
    "test_sae_train",
    "test_evaluation",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of many seconds first, so that two workers end together (with xdist's --no-loadscope-reorder)."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONGEST)))
    needing = [item for item in items if item.get_closest_marker("cuda")]
    if not needing:
        return
    import torch

    if not torch.cuda.is_available():
        for item in needing:
            item.add_marker(pytest.mark.skip(reason="no CUDA device here"))
