"""`autointerp composites`, `geometry`, `families` on SAEs and on bare matrices: what is printed, written, refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from autointerp.cli import app
from autointerp.toys.planted_families import plant_families


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    base = unit(np.random.default_rng(0).standard_normal((200, 64))).astype(np.float32)
    base[2] = unit(base[0] + base[1])
    base[3] = unit(base[2] + 0.8 * base[5])  # of the atoms 0, 1 and 5
    base[4] = 0
    return base


def write(rows: np.ndarray, path: Path, how: str) -> Path:
    tensor = torch.from_numpy(rows)
    if how == "npy":
        np.save(path := path / "rows.npy", rows)
    elif how == "npy16":
        np.save(path := path / "rows.npy", rows.astype(np.float16))
    elif how == "safetensors":
        save_file({"anything": tensor}, path := path / "rows.safetensors")
    elif how == "W_dec":
        save_file({"W_dec": tensor.bfloat16(), "W_enc": tensor.T.contiguous()}, path := path / "rows.safetensors")
    elif how == "pt":
        torch.save(tensor, path := path / "rows.pt")
    elif how == "linear":
        torch.save({"decoder.weight": tensor.T.contiguous(), "bias": tensor[0], "x": tensor}, path := path / "rows.pt")
    else:
        torch.save({"rows": tensor, "bias": tensor[0]}, path := path / "rows.pt")
    return path


@pytest.mark.parametrize("how", ["npy", "npy16", "safetensors", "W_dec", "pt", "linear", "one"])
def test_a_bare_decoder_in_any_file_gives_the_table(rows: np.ndarray, tmp_path: Path, how: str):
    out = tmp_path / "found.parquet"
    result = call("composites", write(rows, tmp_path, how), "--out", out)
    assert result.exit_code == 0, result.stderr
    table = pd.read_parquet(out)
    assert table["label"][2] == table["label"][3] == "composite"
    assert set(table["constituents"][2]) == {0, 1}
    assert table["label"][4] == "dead"
    assert set(table["atoms"][3]) == {0, 1, 5}
    assert not len(table["atoms"][0])
    assert result.stdout.splitlines()[-1] == str(out)


def test_the_summary_counts_labels_and_shows_the_strongest_with_parts_and_atoms(rows: np.ndarray, tmp_path: Path):
    lines = call("composites", write(rows, tmp_path, "npy")).stdout.splitlines()
    assert lines[0].split() == ["label", "latents", "share"]
    assert ["composite", "2", "1.0%"] in [line.split() for line in lines]
    assert any(re.fullmatch(r"2 +composite +1\.000 .* 0\.77·[01] \+ 0\.77·[01]", line) for line in lines)
    assert any(line.startswith("3 ") and set(line.split()[-3:]) == {"0", "1", "5"} for line in lines)
    shown = call("composites", write(rows, tmp_path, "npy"), "--limit", 1).stdout
    assert "1 of 2 shown" in shown


def test_csv_and_json_hold_the_same_columns(rows: np.ndarray, tmp_path: Path):
    source = write(rows, tmp_path, "npy")
    for name in ("found.csv", "found.json", "found.parquet"):
        assert call("composites", source, "--out", tmp_path / name).exit_code == 0
    held = json.loads((tmp_path / "found.json").read_text())
    assert sorted(held[2]["constituents"]) == [0, 1]
    assert held[4]["r2"] is None
    wanted = list(pd.read_parquet(tmp_path / "found.parquet"))
    assert list(held[0]) == list(pd.read_csv(tmp_path / "found.csv")) == wanted


def test_a_file_without_composites_keeps_its_types(tmp_path: Path):
    import pyarrow.parquet as pq

    plain = np.random.default_rng(1).standard_normal((50, 64)).astype(np.float32)
    call("composites", write(plain, tmp_path, "npy"), "--out", tmp_path / "found.parquet")
    schema = pq.read_schema(tmp_path / "found.parquet")
    assert {str(schema.field(c).type) for c in ("constituents", "union_constituents", "atoms")} == {
        "list<element: int64>"
    }
    assert str(schema.field("coefficients").type) == "list<element: double>"
    assert str(schema.field("failure").type) == "string"


def test_constituents_in_another_sae_are_named_as_such(rows: np.ndarray, tmp_path: Path):
    other = unit(np.random.default_rng(3).standard_normal((200, 64))).astype(np.float32)
    own = rows.copy()
    own[7] = unit(own[8] + other[9])
    np.save(tmp_path / "other.npy", other)
    result = call("composites", write(own, tmp_path, "npy"), "--union", tmp_path / "other.npy")
    assert result.exit_code == 0
    assert "·union:9" in result.stdout


def test_an_sae_is_read_as_load_sae_reads_it(tmp_path: Path, rows: np.ndarray):
    from autointerp.sae import SAE, SAEConfig, save_sae

    cfg = SAEConfig("relu", 64, 200, "autointerp", "float32", False)
    tensors: dict[str, Any] = {"W_enc": torch.from_numpy(rows.T.copy()), "W_dec": torch.from_numpy(rows)}
    save_sae(SAE(cfg, tensors | {"b_enc": torch.zeros(200), "b_dec": torch.zeros(64)}), tmp_path / "sae")
    result = call("composites", tmp_path / "sae")
    assert result.exit_code == 0, result.stderr
    assert "composite" in result.stdout
    assert call("composites", tmp_path / "sae", "--transpose").exit_code == 2


def test_columns_for_latents_are_noticed_and_can_be_turned(rows: np.ndarray, tmp_path: Path):
    np.save(tmp_path / "turned.npy", np.concatenate([rows, rows[10:150]]).T)
    assert "add --transpose" in call("composites", tmp_path / "turned.npy").stderr
    result = call("composites", tmp_path / "turned.npy", "--transpose", "--out", tmp_path / "o.json")
    assert result.exit_code == 0
    assert len(json.loads((tmp_path / "o.json").read_text())) == 340
    assert "--transpose" not in result.stderr


def test_transpose_turns_every_bare_matrix_and_is_refused_where_a_name_tells_the_orientation(
    rows: np.ndarray, tmp_path: Path
):
    np.save(tmp_path / "turned.npy", rows.T)
    both = call("composites", tmp_path / "turned.npy", "--union", tmp_path / "turned.npy", "--transpose")
    assert both.exit_code == 0, both.stderr
    linear = write(rows, tmp_path, "linear")
    refused = call("composites", linear, "--transpose")
    assert refused.exit_code == 2
    assert "leave out --transpose" in refused.stderr
    save_file({"W_dec": torch.from_numpy(rows.T.copy())}, tmp_path / "turned.safetensors")
    named = call("composites", tmp_path / "turned.safetensors", "--transpose", "--out", tmp_path / "o.json")
    assert named.exit_code == 0, named.stderr
    assert len(json.loads((tmp_path / "o.json").read_text())) == 200
    one = call("composites", linear, "--union", tmp_path / "turned.npy", "--transpose")
    assert one.exit_code == 0, one.stderr


def test_a_place_that_cannot_be_written_is_said_before_the_check(rows: np.ndarray, tmp_path: Path):
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "file").touch()
    for out in ("folder.csv", "file/found.csv"):
        refused = call("composites", write(rows, tmp_path, "npy"), "--out", tmp_path / out)
        assert refused.exit_code == 2
        assert refused.stdout == ""
        assert f"{out}: cannot be written" in refused.stderr


def test_a_dictionary_of_zeros_is_nothing_to_be_beside(rows: np.ndarray, tmp_path: Path):
    np.save(tmp_path / "zero.npy", np.zeros((20, 64), np.float32))
    result = call("geometry", write(rows, tmp_path, "npy"), "--other", tmp_path / "zero.npy", "--meta-passes", 0)
    assert result.exit_code == 1
    assert "all its rows are zero" in result.stderr


@pytest.mark.parametrize(
    ("make", "code", "says"),
    [
        (lambda p: p / "nowhere.npy", 2, "no SAE and no file"),
        (lambda p: np.save(p / "x.npy", np.full((9, 4), np.nan)) or p / "x.npy", 1, "first in row 0"),
        (lambda p: np.save(p / "x.npy", np.ones((9, 4), dtype=int)) or p / "x.npy", 1, "matrix of floats"),
        (lambda p: np.save(p / "x.npy", np.ones(9)) or p / "x.npy", 1, "expected a matrix"),
        (lambda p: np.save(p / "x.npy", np.ones((0, 4))) or p / "x.npy", 1, "[0, 4], expected a matrix"),
        (lambda p: np.save(p / "x.npy", np.ones((9, 4), np.longdouble)) or p / "x.npy", 1, "matrix of floats"),
        (lambda p: np.savez(p / "x.npz", a=1) or (p / "x.npz").rename(p / "x.npy"), 1, "archive of several"),
        (lambda p: torch.save(torch.eye(9).to_sparse(), p / "x.pt") or p / "x.pt", 1, "(sparse)"),
        (lambda p: torch.save(torch.eye(9).to(torch.float8_e5m2), p / "x.pt") or p / "x.pt", 1, "matrix of floats"),
        (lambda p: np.save(p / "x.npy", np.array([{}])) or p / "x.npy", 1, "cannot be read as an array"),
        (lambda p: (p / "x.npy").write_bytes(b"\x93NUMPY") and p / "x.npy", 1, "cannot be read as an array"),
        (lambda p: (p / "x.pt").write_bytes(b"junk") and p / "x.pt", 1, "x.pt"),
        (lambda p: (p / "x.safetensors").write_bytes(b"junk") and p / "x.safetensors", 1, "x.safetensors"),
        (lambda p: torch.save({"a": torch.ones(3, 3), "b": torch.ones(3, 3)}, p / "x.pt") or p / "x.pt", 1, "a, b"),
        (lambda p: torch.save({"a": torch.ones(3)}, p / "x.pt") or p / "x.pt", 1, "no matrix"),
        (lambda p: torch.save(7, p / "x.pt") or p / "x.pt", 1, "holds a int"),
    ],
)
def test_what_is_no_decoder_is_one_line(tmp_path: Path, make: Any, code: int, says: str):
    result = call("composites", make(tmp_path))
    assert result.exit_code == code
    assert says in result.stderr
    assert result.stderr.splitlines()[-1].startswith("autointerp: ")
    assert "Error:" not in result.stderr


def test_what_cannot_be_written_or_run_is_said_before_any_work(rows: np.ndarray, tmp_path: Path):
    source = write(rows, tmp_path, "npy")
    assert call("composites", source, "--out", tmp_path / "x.txt").exit_code == 2
    result = call("composites", source, "--device", "nonsense")
    assert result.exit_code == 2
    assert "no device 'nonsense' here; there is cpu" in result.stderr


def test_geometry_writes_figures_and_a_picture(rows: np.ndarray, tmp_path: Path):
    np.save(tmp_path / "other.npy", rows[:150])
    source = write(rows, tmp_path, "npy")
    result = call("geometry", source, "--other", tmp_path / "other.npy", "--out", tmp_path / "g", "--meta-passes", 5)
    assert result.exit_code == 0, result.stderr
    found = json.loads((tmp_path / "g" / "geometry.json").read_text())
    assert found["latents"] == 199  # one row is zero
    assert found["other"]["distinct"] < 0.25
    assert {"dictionary", "random", "covariance"} == set(found["mmcs"]) == set(found["meta_sae"])
    assert (tmp_path / "g" / "geometry.png").read_bytes()[:4] == b"\x89PNG"
    assert "mean highest cosine" in result.stdout


def test_a_meta_sae_explains_rows_that_share_few_directions_far_better_than_their_nulls(tmp_path: Path):
    rng = np.random.default_rng(0)
    atoms = rng.standard_normal((20, 64))
    mixed = np.stack([atoms[rng.choice(20, 3, replace=False)].sum(0) for _ in range(400)]).astype(np.float32)
    np.save(tmp_path / "mixed.npy", mixed)
    assert call("geometry", tmp_path / "mixed.npy", "--out", tmp_path, "--meta-passes", 100).exit_code == 0
    meta = json.loads((tmp_path / "geometry.json").read_text())["meta_sae"]
    explained = {name: of["explained_variance"] for name, of in meta.items()}
    assert explained["dictionary"] > explained["random"] + 0.1
    assert explained["dictionary"] > explained["covariance"] + 0.05


def test_too_few_directions_make_no_report(tmp_path: Path):
    np.save(tmp_path / "few.npy", np.eye(7, dtype=np.float32))
    result = call("geometry", tmp_path / "few.npy", "--out", tmp_path / "g")
    assert result.exit_code == 1
    assert "too few" in result.stderr
    assert not (tmp_path / "g").exists()


def test_families_follows_latents_through_three_saes(tmp_path: Path):
    planted = plant_families(150, 64, seed=0)
    for name, matrix in (("narrow", planted.narrow), ("wide", planted.wide)):
        np.save(tmp_path / f"{name}.npy", matrix)
    specs = [tmp_path / f"{name}.npy" for name in ("narrow", "wide", "narrow")]
    result = call("families", *specs, "--out", tmp_path / "f")
    assert result.exit_code == 0, result.stderr
    assert "1: narrow.npy → wide.npy" in result.stdout
    table = pd.read_parquet(tmp_path / "f" / "families.parquet")
    assert len(table) == 2 * (len(planted.narrow) + len(planted.wide))
    first = table[(table["sae"] == "1: narrow.npy") & (table["side"] == "narrow")]
    counts = first["label"].value_counts()
    pair = json.loads((tmp_path / "f" / "families.json").read_text())[0]
    assert pair["fates"] == counts.to_dict()
    assert counts["split"] >= 0.9 * planted.fates.count("split")
    assert (tmp_path / "f" / "families.png").read_bytes()[:4] == b"\x89PNG"


def test_families_of_one_sae_says_what_it_needs(tmp_path: Path):
    np.save(tmp_path / "a.npy", np.eye(8, dtype=np.float32))
    result = call("families", tmp_path / "a.npy")
    assert result.exit_code == 2
    assert "families needs two SAEs or more" in result.stderr


def test_families_names_saes_by_what_tells_them_apart(tmp_path: Path):
    rows = np.random.default_rng(0).standard_normal((40, 32)).astype(np.float32)
    for folder in ("512 0", "512 1"):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / "rows.npy", rows)
    result = call("families", *(tmp_path / f / "rows.npy" for f in ("512 0", "512 1")), "--out", tmp_path / "f")
    assert "512 0/rows.npy → 512 1/rows.npy" in result.stdout
    assert set(pd.read_parquet(tmp_path / "f" / "families.parquet")["label"]) == {"kept"}
