"""Where things are kept on this machine: keys, data, and the records of running peers.

    config/keys/NAME.key    Ed25519 keys, one a name
    data/NAME/              a peer's store
    runtime/peers/          one record for each peer that runs now
    runtime/logs/           logs of peers in the background

The three roots follow the XDG base directory specification; `$PEERGRID_HOME` puts all three below one folder.
"""

from __future__ import annotations

import os
import re
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from protocol import limits
from protocol.errors import BadRequest, SetupError

HOME_VARIABLE: Final = "PEERGRID_HOME"
_APP: Final = "peergrid"
_FILE_NAME: Final = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{limits.MAX_NAME - 1}}}")


@dataclass(frozen=True, slots=True)
class Folders:
    """The three roots. What its methods return has been made (mode 0700, or its parent for a file) and checked.

    Raises:
        SetupError: a folder cannot be made, is no folder, or belongs to another user.
        BadRequest: a name that cannot be a file name.
    """

    config: Path
    data: Path
    runtime: Path

    @classmethod
    def default(cls, environment: Mapping[str, str] | None = None) -> Folders:
        """The folders of this user. `environment` stands in for os.environ."""
        variables = os.environ if environment is None else environment
        home = variables.get(HOME_VARIABLE)
        if home:
            return cls.under(Path(home).absolute())
        return cls(
            config=_xdg(variables, "XDG_CONFIG_HOME", ".config"),
            data=_xdg(variables, "XDG_DATA_HOME", ".local/share"),
            runtime=_runtime(variables),
        )

    @classmethod
    def under(cls, path: str | os.PathLike[str]) -> Folders:
        """All three below one folder."""
        root = Path(path)
        return cls(root / "config", root / "data", root / "run")

    def key_file(self, name: str) -> Path:
        """Where the key called `name` is; the file itself may not be there yet."""
        checked = _file_name(name)
        return self._inside(self.config, "keys") / f"{checked}.key"

    def peer_data(self, name: str) -> Path:
        """The store of the peer called `name`."""
        return self._inside(self.data, _file_name(name))

    @property
    def peers(self) -> Path:
        """Records of the peers that run on this machine."""
        return self._inside(self.runtime, "peers")

    @property
    def logs(self) -> Path:
        return self._inside(self.runtime, "logs")

    def _inside(self, root: Path, name: str) -> Path:
        # The root is checked on each use, not only when made: the temporary folder is open to everyone, and
        # records planted there by another user would name peers of theirs as ours.
        private_folder(root)
        return private_folder(root / name)


def private_folder(path: Path) -> Path:
    """Make `path` with mode 0700 if it is not there, and check that it is this user's own folder."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.lstat()
    except OSError as error:
        raise SetupError(f"the folder {path} cannot be made: {error.strerror}; set ${HOME_VARIABLE}") from error
    if stat.S_ISLNK(status.st_mode):
        status = _behind_link(path, status)
    if status.st_uid != os.geteuid():
        raise SetupError(f"the folder {path} belongs to another user; remove it or set ${HOME_VARIABLE}")
    if status.st_mode & 0o077:
        path.chmod(0o700)
    return path


def _behind_link(path: Path, link: os.stat_result) -> os.stat_result:
    # One's own link (data on another disk) is fine; a link planted by someone else is not.
    if link.st_uid != os.geteuid():
        raise SetupError(f"{path} is a link made by another user; remove it or set ${HOME_VARIABLE}")
    return path.stat()


def _file_name(name: str) -> str:
    if not _FILE_NAME.fullmatch(name):
        raise BadRequest(
            f"{name[:80]!r} cannot be a name: letters, digits, '.', '_' and '-', at most {limits.MAX_NAME}"
        )
    return name


def _xdg(variables: Mapping[str, str], variable: str, fallback: str) -> Path:
    path = Path(variables.get(variable, ""))
    # The specification says that a relative path is to be ignored.
    return (path if path.is_absolute() else _home(variables) / fallback) / _APP


def _runtime(variables: Mapping[str, str]) -> Path:
    path = Path(variables.get("XDG_RUNTIME_DIR", ""))
    if path.is_absolute() and path.is_dir():
        return path / _APP
    return Path(tempfile.gettempdir()) / f"{_APP}-{os.geteuid()}"


def _home(variables: Mapping[str, str]) -> Path:
    try:
        return Path(variables["HOME"]) if variables.get("HOME") else Path.home()
    except RuntimeError:
        raise SetupError(f"this user has no home folder; set ${HOME_VARIABLE}") from None
