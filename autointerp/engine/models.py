"""The run's subject, SAEs and embedder: each is loaded when it is first asked for and kept by the session."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from autointerp.catalog import entries, resolve
from autointerp.config import RedrawnSae
from autointerp.engine.session import Session
from autointerp.errors import AutointerpError, ConfigError
from autointerp.hashing import fingerprint

if TYPE_CHECKING:
    import numpy as np

    from autointerp.sae.model import SAE
    from autointerp.subject.model import Subject

EMBEDDER = "minilm"  # of the catalogue


def identity(name: str, revision: str | None = None) -> str:
    """What a key holds of a model, an SAE or a text: the pinned hash of a catalogue entry, the content of a local file
    or folder, or the hub id with its revision."""
    path = Path(name).expanduser()
    if name in entries():
        return f"{name}:{entries()[name].sha256}"
    if name and path.exists():  # Path("") is the working folder
        return fingerprint(path)
    return f"{name}@{revision}"


def device(session: Session) -> str:
    return pick_device(session.config.subject.device)


def pick_device(wanted: str) -> str:
    if wanted != "auto":
        return wanted
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def subject_folder(session: Session) -> Path:
    subject = session.config.subject
    return session.once("subject folder", lambda: resolve(subject.model, "model", revision=subject.revision))


def token_strings(session: Session) -> Callable[[Sequence[int]], list[str]]:
    from autointerp.subject.tokens import token_strings

    return session.once("token strings", lambda: token_strings(subject_folder(session)))


def subject(session: Session, hook: str | None) -> Subject:
    """The subject with the hook of the config, or of the SAE (`hook`) where the config names none. It is loaded once,
    however many hooks it is read at."""
    from autointerp.subject.model import load_subject

    wanted = session.config.subject.hook or hook
    if wanted is None:
        raise ConfigError("subject.hook is missing, and the SAE's files do not say what it was trained on")
    about = session.config.subject

    def load() -> Subject:
        return load_subject(about, subject_folder(session), None)

    made = f"subject, weights {about.weights}"
    return session.once(f"{made}, at {wanted}", lambda: session.once(made, load).at(wanted))


def load_sae(session: Session, folder_or_spec: str | Path, format: str | None = None) -> SAE:
    from autointerp.sae.load import load_sae

    return load_sae(str(folder_or_spec), format=format, device=device(session))


def open_sae(session: Session, folder: Path) -> SAE:
    """The SAE, or the neurons, that the run left in `folder`, or the SAE that its config names."""
    if isinstance(session.config.sae, RedrawnSae):
        from autointerp.sae.redraw import read_redrawn

        return read_redrawn(folder, device(session))
    return own_sae(session, folder)


def own_sae(session: Session, folder: Path) -> SAE:
    """The same before its directions are redrawn."""
    wanted = session.config.sae
    if wanted.load is None:
        return load_sae(session, folder)
    return load_sae(session, wanted.load, wanted.format)


def kept_sae(session: Session, folder: Path) -> SAE:
    """`open_sae`, once a run: for plug-ins, which share it."""
    return session.once(f"sae {folder}", lambda: open_sae(session, folder))


def embedder(session: Session) -> Callable[[Sequence[str]], np.ndarray]:
    """Texts -> unit rows [n, d], by the catalogue's sentence embedder."""
    from autointerp.catalog.embed import Embedder

    return session.once("embedder", lambda: Embedder(resolve(EMBEDDER, "embedder"), device(session)))


def written(session: Session, sae: SAE) -> Subject:
    """The subject where the SAE's output belongs: where it reads, or elsewhere for a transcoder.

    Raises ConfigError for a transcoder that does not say where, AutointerpError for one that does not fit there.
    """
    reads = subject(session, sae.cfg.hook_name)
    if sae.cfg.d_out is None:
        return reads
    wanted = session.config.subject.hook_out or sae.cfg.hook_name_out
    if wanted is None:
        raise ConfigError("subject.hook_out is missing, and the transcoder's files do not say where it writes")
    writes = reads.at(wanted)
    if writes.d_hook != sae.cfg.d_out:
        raise AutointerpError(
            f"the transcoder writes vectors of {sae.cfg.d_out} numbers, {writes.hook.name} of this model has"
            f" {writes.d_hook}: name the subject.model and subject.hook_out that it was trained on"
        )
    return writes
