"""Where things are kept, and who may have made it."""

import os
import stat
from pathlib import Path

import pytest

from peer.folders import Folders, private_folder
from protocol.errors import BadRequest, SetupError


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_one_variable_puts_everything_below_one_folder(tmp_path):
    folders = Folders.default({"PEERGRID_HOME": str(tmp_path / "home"), "XDG_DATA_HOME": "/elsewhere"})
    assert folders == Folders.under(tmp_path / "home")
    assert folders.key_file("alice") == tmp_path / "home" / "config" / "keys" / "alice.key"
    assert folders.peer_data("alice") == tmp_path / "home" / "data" / "alice"
    assert folders.peers == tmp_path / "home" / "run" / "peers"
    assert folders.logs == tmp_path / "home" / "run" / "logs"


def test_the_xdg_folders_are_used(tmp_path):
    (tmp_path / "run").mkdir()
    folders = Folders.default(
        {
            "XDG_CONFIG_HOME": str(tmp_path / "c"),
            "XDG_DATA_HOME": str(tmp_path / "d"),
            "XDG_RUNTIME_DIR": str(tmp_path / "run"),
        }
    )
    assert folders == Folders(tmp_path / "c" / "peergrid", tmp_path / "d" / "peergrid", tmp_path / "run" / "peergrid")


@pytest.mark.parametrize("value", ["", "relative/path"])
def test_an_xdg_folder_that_is_not_absolute_is_ignored(tmp_path, monkeypatch, value):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    folders = Folders.default(
        {"HOME": str(tmp_path), "XDG_CONFIG_HOME": value, "XDG_DATA_HOME": value, "XDG_RUNTIME_DIR": value}
    )
    assert folders.config == tmp_path / ".config" / "peergrid"
    assert folders.data == tmp_path / ".local" / "share" / "peergrid"
    assert folders.runtime == tmp_path / "tmp" / f"peergrid-{os.geteuid()}"


def test_a_runtime_folder_that_is_gone_is_ignored(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folders = Folders.default({"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path / "gone")})
    assert folders.runtime.parent == tmp_path


def test_folders_are_made_for_their_user_alone_when_asked_for(tmp_path):
    folders = Folders.under(tmp_path / "home")
    assert not (tmp_path / "home").exists()
    for path in (folders.peers, folders.logs, folders.peer_data("a"), folders.key_file("a").parent):
        assert mode(path) == mode(path.parent) == 0o700


def test_a_folder_that_others_may_read_is_closed_to_them(tmp_path):
    (tmp_path / "run" / "peers").mkdir(parents=True, mode=0o777)
    (tmp_path / "run" / "peers").chmod(0o777)
    assert mode(Folders.under(tmp_path).peers) == 0o700


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "a\0b", "-x", ".hidden", "x" * 65, "a\n", "ä"])
def test_a_name_that_leads_elsewhere_is_refused(tmp_path, name):
    folders = Folders.under(tmp_path)
    for ask in (folders.key_file, folders.peer_data):
        with pytest.raises(BadRequest, match="cannot be a name"):
            ask(name)


def of_another_user(status):
    return os.stat_result([*status[:4], status.st_uid + 1, *status[5:]])


def test_a_runtime_folder_of_another_user_is_refused(tmp_path, monkeypatch):
    planted = tmp_path / "run"
    planted.mkdir(mode=0o700)
    real = Path.lstat
    monkeypatch.setattr(Path, "lstat", lambda path: of_another_user(real(path)) if path == planted else real(path))
    for ask in (lambda f: f.peers, lambda f: f.logs):
        with pytest.raises(SetupError, match="belongs to another user"):
            ask(Folders.under(tmp_path))


def test_a_link_planted_by_another_user_is_refused_and_ones_own_is_followed(tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "real")
    assert private_folder(link) == link
    real = Path.lstat
    monkeypatch.setattr(Path, "lstat", lambda path: of_another_user(real(path)) if path == link else real(path))
    with pytest.raises(SetupError, match="made by another user"):
        private_folder(link)


def test_a_file_in_a_folders_place_is_refused(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(SetupError, match="cannot be made"):
        _ = Folders.under(tmp_path).peers


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch):
    def no_home():
        raise RuntimeError

    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(SetupError, match="PEERGRID_HOME"):
        Folders.default({})
