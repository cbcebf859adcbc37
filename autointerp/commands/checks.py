"""Checks of `doctor`: one function for each thing in a config that can be known wrong before it runs.

Each gives `Check`s. Nothing is fetched, nothing is sent, no model is loaded.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from autointerp.catalog import check_name, entries
from autointerp.commands.rehearsal import own_folder
from autointerp.config import Config, LLMConfig, PluginConfig
from autointerp.engine.asking import MISSING
from autointerp.engine.mirror import mirror
from autointerp.errors import AutointerpError, ConfigError
from autointerp.plugins import bind_options, controls, explainers, needs, scorers
from autointerp.registry import Registry
from autointerp.resources import cache_dir
from autointerp.sae.describe import Description, describe
from autointerp.sae.hub import looks_remote
from autointerp.subject.describe import described_subject, has_chat_template
from autointerp.subject.hooks import USUAL, resolve_hook

State = Literal["ok", "wrong", "not known"]


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. `text`: what is wrong and what to do, or what was seen."""

    name: str
    state: State = "ok"
    text: str = ""
    exit_code: int = 2  # of a run that ends for it

    @property
    def wrong(self) -> bool:
        return self.state == "wrong"


def checked(name: str, look: Callable[[], str | None]) -> Check:
    """What `look` says it saw; a known error is what is wrong."""
    try:
        return Check(name, "ok", look() or "")
    except AutointerpError as error:
        return Check(name, "wrong", " ".join(str(error).split()), error.exit_code)
    except OSError as error:
        return Check(name, "wrong", f"{error.filename}: {error.strerror}: see that it can be read", 1)


# --- plug-ins ---------------------------------------------------------------------------------

PLUGINS: tuple[tuple[str, Registry[Callable[..., Any]]], ...] = (
    ("explainers", explainers),
    ("scorers", scorers),
    ("controls", controls),
)


def check_plugins(config: Config) -> Iterator[Check]:
    """Each loads, its options are right and none is missing."""
    for section, registry in PLUGINS:
        for plugin in getattr(config, section):
            yield checked(f"{registry.kind} {plugin.key}", lambda p=plugin, r=registry: _options(config, r, p))


def _options(config: Config, registry: Registry[Callable[..., Any]], plugin: PluginConfig) -> None:
    function = registry.get(plugin.name)
    bind_options(registry.kind, plugin.name, function, plugin.options, config.seed)


def models_asked(config: Config) -> Iterator[tuple[str, LLMConfig | None]]:
    """Who asks a language model, and which; None where the config names none. Broken plug-ins are left out."""
    for section, registry in PLUGINS[:2]:
        for plugin in getattr(config, section):
            try:
                function = registry.get(plugin.name)
            except ConfigError:
                continue
            if "llm" in needs(function):
                yield f"{registry.kind} {plugin.key}", plugin.llm or config.llm
    if config.composites.semantic is not None:
        yield "composites.semantic", config.composites.semantic.llm or config.llm


def check_models_named(config: Config) -> Iterator[Check]:
    """One line for all that ask a language model and have none."""
    without = [name for name, llm in models_asked(config) if llm is None]
    if without:
        others = f", as do {', '.join(without[1:])}" if without[1:] else ""
        yield Check("llm", "wrong", f"{without[0]} needs a language model{others}: {MISSING}")


def check_model(llm: LLMConfig) -> Iterator[Check]:
    """Its key, its folder, its name, its device, as its backend knows them."""
    from autointerp.llm.registry import check

    yield checked(f"model {llm.model}", lambda: check(llm, tuple(entries("model"))))
    folder = own_folder(llm)
    if folder is not None and not has_chat_template(folder):
        text = f"llm.model {llm.model!r} has no chat template, so it cannot be asked: name an instruct model"
        yield Check(f"chat of {llm.model}", "wrong", text)
    if llm.device.startswith("cuda"):
        yield check_device(f"device of {llm.model}", "llm.device", llm.device)


# --- subject, text, SAE -----------------------------------------------------------------------


def check_subject(config: Config) -> Iterator[Check]:
    model, subject = config.subject.model, described_subject(config.subject.model)

    def name() -> str:
        check_name(model, "model")
        return "" if subject.layers is None else f"{subject.layers} layers, width {subject.width}"

    yield checked("subject", name)
    if config.subject.device.startswith("cuda"):
        yield check_device("device", "subject.device", config.subject.device)
    hook = config.subject.hook or _sae(config).hook_name
    if hook is None:
        if config.sae.load is None:
            text = "subject.hook is missing: it says what to read, to train an SAE or as neurons"
            yield Check("hook", "wrong", text)
        elif _local(config):
            text = "subject.hook is missing, and the SAE's files may not say what it was trained on"
            yield Check("hook", "not known", text)
        return
    yield check_hook(hook, subject.layers)


def check_device(name: str, key: str, device: str) -> Check:
    import torch

    number = int(device.partition(":")[2] or 0) if device.partition(":")[2].isdigit() or ":" not in device else -1
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if 0 <= number < count:
        return Check(name, "ok", torch.cuda.get_device_name(number))
    has = f"this machine has {count} GPUs" if count else "torch sees no GPU on this machine"
    return Check(name, "wrong", f"{key} is {device}, and {has}: set {key} to auto or cpu")


_HOOK = re.compile(r"blocks\.(\d+)\.(.+)")
LIKE = 0.9  # a name that is so like a usual one is a slip of the pen


def check_hook(hook: str, layers: int | None) -> Check:
    """By the layers of config.json and the usual hook points; an unusual one is known once the model is loaded."""
    if layers is None:
        return Check("hook", "not known", f"{hook}: the subject's files are not here yet")
    try:
        return Check("hook", "ok", str(resolve_hook(hook, layers)))
    except ConfigError as error:
        block = _HOOK.fullmatch(hook)
        unusual = block and int(block[1]) < layers and not get_close_matches(block[2], USUAL, cutoff=LIKE)
        if unusual:
            return Check("hook", "not known", f"{hook}: looked for once the model is loaded")
        return Check("hook", "wrong", str(error), error.exit_code)


def check_corpus(config: Config) -> Iterator[Check]:
    """The text can be read and has the column; the model reads rows as long as those asked for."""
    from autointerp.activations.delphi_cache import is_cache
    from autointerp.subject.corpus import read_documents

    corpus, path = config.corpus, Path(config.corpus.source).expanduser()
    limit = described_subject(config.subject.model).context
    if limit is not None and corpus.context > limit:
        text = f"corpus.context is {corpus.context} and the model reads {limit} tokens at most: lower it"
        yield Check("corpus.context", "wrong", text)
    if corpus.source in entries("text"):
        yield Check("corpus", "ok", "a text of the catalogue")
    elif "/" in corpus.source and not path.exists() and looks_remote(corpus.source) and not path.suffix:
        yield Check("corpus", "not known", f"{corpus.source}: read from the hub when the run begins")
    elif is_cache(corpus.source):
        yield Check("corpus", "ok", "a cache of delphi's: its tokens are the text")
    else:

        def first() -> None:
            documents = (text for text in islice(read_documents(corpus), 1000) if text.strip())
            if next(documents, None) is None:
                raise AutointerpError(f"corpus.source {corpus.source!r} holds no text in its first documents")

        yield checked("corpus", first)


def check_sae(config: Config, *, deep: bool) -> Iterator[Check]:
    """`deep`: the format is looked for too, which imports torch."""
    if config.sae.train is not None:
        from autointerp.stages.sae import train_config

        yield checked("sae.train", lambda: train_config(config).architecture)
        return
    if config.sae.neurons is not None:
        return
    spec = config.sae.load or ""
    if looks_remote(spec):
        text = f"{spec}: no such file or folder here, so it is taken as a hub id and fetched when the run begins"
        yield Check("sae", "not known", text)
        return
    yield checked("sae", lambda: _format(config, spec, deep))
    yield from _widths(config)


def _format(config: Config, spec: str, deep: bool) -> str | None:
    path = Path(spec).expanduser()
    if not path.exists():
        raise ConfigError(f"no SAE at {path}: name a file or folder, or a hub id, in sae.load")
    if not deep:
        return None
    from autointerp.sae.formats import find_format

    return find_format(path, config.sae.format)[0]


def _widths(config: Config) -> Iterator[Check]:
    sae, subject = _sae(config), described_subject(config.subject.model)
    hook = config.subject.hook or sae.hook_name
    if sae.d_in is None or hook is None or subject.layers is None or subject.width is None:
        return
    try:
        point = resolve_hook(hook, subject.layers).name
    except ConfigError:  # told by `check_hook`
        return
    if sae.hook_name and not resolve_hook(hook, subject.layers).means(sae.hook_name):
        text = f"the SAE says that it was trained on {sae.hook_name}, and subject.hook is {hook}"
        yield Check("trained on", "not known", text)
    inner = point.endswith(("mlp.hook_pre", "mlp.hook_post"))
    width = subject.inner if inner else subject.width
    if width is None or point.endswith(tuple(name for name in USUAL if name.startswith("attn."))):
        return
    if width == sae.d_in:
        yield Check("width", "ok", f"{width} numbers at {point}")
        return
    text = f"the SAE reads vectors of {sae.d_in} numbers, {point} of this model has {width}: "
    text += "name the subject.model and subject.hook that the SAE was trained on"
    yield Check("width", "wrong", text, 1)


def _sae(config: Config) -> Description:
    return describe(Path(config.sae.load or "").expanduser()) if _local(config) else Description()


def _local(config: Config) -> bool:
    return config.sae.load is not None and not looks_remote(config.sae.load)


def check_features(config: Config) -> Iterator[Check]:
    """The SAE has the latents that are asked for, and the text could make them fire often enough."""
    wanted, latents = config.features, _sae(config).d_sae
    if config.sae.train is not None:
        latents = config.sae.train.get("d_sae") if isinstance(config.sae.train.get("d_sae"), int) else None
    unknown = [i for i in wanted.ids or () if i < 0 or (latents is not None and i >= latents)]
    if unknown:
        known = f"latents 0 to {latents - 1}" if latents is not None else "no negative latents"
        yield Check("features.ids", "wrong", f"features.ids: the SAE has {known}, not {unknown[0]}")
    if wanted.min_firings > config.corpus.tokens:
        text = (
            f"features.min_firings is {wanted.min_firings:,} and the text has at most {config.corpus.tokens:,} tokens:"
        )
        yield Check("features.min_firings", "wrong", f"{text} raise corpus.tokens or lower features.min_firings", 1)


# --- the machine ------------------------------------------------------------------------------

SPARE = 1.1  # times what is expected to be written


def check_disk(wanted: Iterable[tuple[str, float]]) -> Check:
    """`wanted`: stages to do and the bytes that each is expected to write."""
    sizes = {name: size for name, size in wanted if size}
    total = SPARE * sum(sizes.values())
    place = cache_dir()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if total <= free:
        return Check("disk", "ok", f"about {_size(total)} of {_size(free)}")
    largest = max(sizes, key=lambda name: sizes[name])
    text = (
        f"the run writes about {_size(total)} into {cache_dir()}, most of it by {largest}, and {_size(free)} are free:"
    )
    return Check("disk", "wrong", f"{text} make room, set AUTOINTERP_CACHE to another disk, or lower corpus.tokens", 1)


def check_mirror(wanted: Iterable[tuple[str, float]], *, probe: bool) -> Iterator[Check]:
    """`wanted` as above, of stages whose files go there. A mirror that fails ends no run; one without a driver would
    never work. `probe`: a small file is written where there is none."""
    try:
        kept_at = mirror()
    except ConfigError as error:
        yield Check("mirror", "wrong", str(error))
        return
    if kept_at is None:
        return
    trouble = kept_at.trouble(probe=probe)
    size = sum(size for _, size in wanted)
    going = f"; what is to do puts about {_size(size)} there" if size else ""
    yield Check("mirror", "not known" if trouble else "ok", trouble or f"{kept_at.remote.shown}{going}")


def _size(number: float) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e8 else f"{number / 1e6:.1f} MB"
