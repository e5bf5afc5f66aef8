"""Hostile names, paths and files: nothing outside the allowed roots is read, nothing is run, nothing hangs."""

from __future__ import annotations

import os
import pickle
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from fixtures.adapters import CONFIGS, write_adapter
from safetensors.torch import save_file

from npu_weave.adapters import MoEGeometry, open_adapter, resolve_adapter_path, validate_adapter_name
from npu_weave.errors import AdapterError, AdapterNotFoundError, AdapterPathError

EXPERTS = {1: [3, 0], 2: [4]}
GEOMETRY = MoEGeometry.from_config(CONFIGS["deepseek_v2"])


def refused(path: Path) -> AdapterError:
    with pytest.raises(AdapterError) as caught:
        open_adapter(path, GEOMETRY)
    return caught.value


@pytest.mark.parametrize("name", ["math", "a", "0", "token-math.v2_b", "x" * 128])
def test_good_names(name: str) -> None:
    assert validate_adapter_name(name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "-x", "a/b", "../a", "a\\b", "a b", "a\n", "a\0", "é", "٣", "x" * 129, "a%2e"]
)
def test_bad_names(name: str) -> None:
    with pytest.raises(AdapterError) as caught:
        validate_adapter_name(name)
    assert caught.value.code == "ADAPTER_NAME_INVALID"
    assert str(caught.value).isprintable()


@pytest.fixture
def roots(tmp_path: Path) -> Path:
    """`allowed/a`, `allowed-not/b` and `outside/c` are adapters; links lead out of and into `allowed`."""
    for place in ("allowed/a", "allowed-not/b", "outside/c"):
        write_adapter(tmp_path / place, EXPERTS)
    (tmp_path / "allowed/out").symlink_to(tmp_path / "outside/c")
    (tmp_path / "allowed/up").symlink_to(tmp_path)
    (tmp_path / "into").symlink_to(tmp_path / "allowed/a")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    return tmp_path


def test_paths_under_the_roots(roots: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = [roots / "elsewhere", roots / "allowed"]
    real = (roots / "allowed/a").resolve()
    for path in ("allowed/a", "allowed/../allowed/a", "into", "allowed/up/allowed/a", "allowed/a/"):
        assert resolve_adapter_path(roots / path, allowed) == real
    monkeypatch.chdir(roots / "allowed")
    assert resolve_adapter_path("a", allowed) == real
    assert resolve_adapter_path("a", [Path(".")]) == real
    assert resolve_adapter_path(roots / "allowed/a", [roots / "into"]) == real
    assert open_adapter(roots / "into", GEOMETRY, allowed_roots=allowed).path == real


@pytest.mark.parametrize(
    "path",
    [
        "outside/c",
        "allowed/../outside/c",
        "allowed/out",
        "allowed/up/outside/c",
        "allowed-not/b",
        "nothing",
        ".",
        "/etc",
    ],
)
def test_paths_outside_the_roots(roots: Path, path: str) -> None:
    for target in (path, f"{path}/nothing/there"):
        with pytest.raises(AdapterPathError) as caught:
            open_adapter(roots / target, GEOMETRY, allowed_roots=[roots / "allowed"])
        # What does not exist outside gets the same answer as what does.
        assert caught.value.code == "ADAPTER_PATH_OUTSIDE"


def test_no_roots_allow_nothing(roots: Path) -> None:
    with pytest.raises(AdapterPathError):
        resolve_adapter_path(roots / "allowed/a", [])
    assert resolve_adapter_path(roots / "outside/c", None) == (roots / "outside/c").resolve()


@pytest.mark.parametrize(
    "path",
    ["http://host/a", "HTTPS://host/a", "file:///etc", "file:/etc", "s3://bucket/a", "hf://org/model", "data:text,a"],
)
def test_urls(path: str) -> None:
    with pytest.raises(AdapterPathError) as caught:
        resolve_adapter_path(path, None)
    assert caught.value.code == "ADAPTER_PATH_URL"


def test_impossible_paths(roots: Path) -> None:
    for path in ("", "a\0b", "x" * 5000, str(roots / "loop"), str(roots / "loop/deeper")):
        with pytest.raises((AdapterPathError, AdapterNotFoundError)):
            resolve_adapter_path(path, None)


class Trap:
    """Unpickling it leaves a file behind."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.proof),)


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".pkl", ".ckpt", ".PT"])
def test_pickles_are_refused_by_name(tmp_path: Path, suffix: str) -> None:
    directory = write_adapter(tmp_path / "a", EXPERTS)
    (directory / f"weights{suffix}").write_bytes(pickle.dumps(Trap(tmp_path / "proof")))
    error = refused(directory)
    assert error.code == "FILE_IS_PICKLE"
    assert f"weights{suffix}" in str(error)
    assert not (tmp_path / "proof").exists()


@pytest.mark.parametrize("how", ["torch", "torch legacy", "pickle", "zip"])
def test_pickles_are_refused_by_content(tmp_path: Path, how: str) -> None:
    directory = write_adapter(tmp_path / "a", EXPERTS)
    shard = directory / "model.safetensors"
    trap = Trap(tmp_path / "proof")
    if how.startswith("torch"):
        torch.save({"a": torch.ones(3), "b": trap}, shard, _use_new_zipfile_serialization=how == "torch")
    elif how == "pickle":
        shard.write_bytes(pickle.dumps(trap))
    else:
        with zipfile.ZipFile(shard, "w") as archive:
            archive.writestr("data.pkl", pickle.dumps(trap))
    assert refused(directory).code == "FILE_IS_PICKLE"
    assert not (tmp_path / "proof").exists()


@pytest.mark.parametrize("length", [(16 << 20) + 1, 100 << 20, 2**63, 2**64 - 1])
def test_huge_headers_are_refused_unread(tmp_path: Path, length: int) -> None:
    shard = write_adapter(tmp_path, EXPERTS) / "model.safetensors"
    with shard.open("wb") as file:
        file.write(length.to_bytes(8, "little") + b"{")
        file.truncate(200 << 20)
    assert refused(tmp_path).code == "FILE_HEADER_TOO_LARGE"


@pytest.mark.parametrize("name", ["model.safetensors", "expert_cfg.json", "model.safetensors.index.json"])
def test_links_must_stay_inside(tmp_path: Path, name: str) -> None:
    directory = write_adapter(tmp_path / "a", EXPERTS, index=True)
    elsewhere = tmp_path / "elsewhere"
    (directory / name).rename(elsewhere)
    (directory / name).symlink_to(elsewhere)
    assert refused(directory).code == "FILE_OUTSIDE"


def test_links_inside_are_fine(tmp_path: Path) -> None:
    directory = write_adapter(tmp_path / "a", EXPERTS)
    (directory / "store").mkdir()
    (directory / "model.safetensors").rename(directory / "store/blob")
    (directory / "model.safetensors").symlink_to("store/blob")
    open_adapter(directory, GEOMETRY).expert(1, 3)


@pytest.mark.parametrize("how", ["pipe", "directory", "device", "dangling", "loop"])
def test_what_is_no_regular_file(tmp_path: Path, how: str) -> None:
    directory = write_adapter(tmp_path / "a", EXPERTS)
    shard = directory / "model.safetensors"
    shard.unlink()
    if how == "pipe":
        os.mkfifo(shard)
    elif how == "directory":
        shard.mkdir()
    elif how == "device":
        shard.symlink_to("/dev/zero")
    else:
        shard.symlink_to(shard if how == "loop" else directory / "nothing")
    expected = {
        "pipe": {"FILE_NOT_REGULAR"},
        "directory": {"FILE_NOT_REGULAR"},
        "device": {"FILE_OUTSIDE"},
        "dangling": {"FILE_MISSING"},
        "loop": {"FILE_UNREADABLE"},
    }
    assert refused(directory).code in expected[how]


def test_a_pipe_in_place_of_a_shard_does_not_hang_a_reader(tmp_path: Path) -> None:
    directory = write_adapter(tmp_path, EXPERTS)
    adapter = open_adapter(directory, GEOMETRY)
    (directory / "model.safetensors").unlink()
    os.mkfifo(directory / "model.safetensors")
    with pytest.raises(AdapterError) as caught:
        adapter.expert(1, 3)
    assert caught.value.code == "FILE_NOT_REGULAR"


def test_a_directory_moved_away_and_another_put_in_its_place(tmp_path: Path) -> None:
    adapter = open_adapter(write_adapter(tmp_path / "a", EXPERTS), GEOMETRY)
    shutil.move(tmp_path / "a", tmp_path / "old")
    write_adapter(tmp_path / "a", EXPERTS)
    with pytest.raises(AdapterError) as caught:
        adapter.expert(1, 3)
    assert caught.value.code == "FILE_CHANGED"


def test_hostile_tensor_names_do_not_reach_the_terminal_raw(tmp_path: Path) -> None:
    write_adapter(tmp_path, EXPERTS)
    save_file({"\x1b[2J\x07" + "x" * 10_000: torch.ones(1)}, tmp_path / "more.safetensors")
    text = str(refused(tmp_path))
    assert text.isprintable()
    assert len(text) < 1000
