"""Parameter files, read once.

DVC parses the whole parameter file each time that it looks at a stage, and searches all of it for each key: with 300 stages
and a `params.yaml` of 1,000 lines, nearly all that a plan took. Here a file is parsed when it is new or has changed, by
what DVC itself trusts for its hashes (inode, size, time), and a key is followed where it leads.
"""

import os
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dvc.fs import FileSystem

_parsed: dict[str, tuple[tuple[int, int, int], Any]] = {}  # by path: the file's identity, its content


@cache
def read_parameters_once() -> None:
    """Have the DVC of this process read parameters in this way."""
    import dvc.dependency.param as param
    import dvc.utils.serialize as serialize

    parse, read = serialize.load_path, param.read_param_file

    def load_path(path: str, fs: "FileSystem", **options: Any) -> Any:
        if fs.protocol != "local" or options:
            return parse(path, fs, **options)
        status = os.stat(path)
        identity = status.st_ino, status.st_size, status.st_mtime_ns
        if path not in _parsed or _parsed[path][0] != identity:
            _parsed[path] = identity, parse(path, fs)
        return _parsed[path][1]

    def read_param_file(
        fs: "FileSystem", path: str, keys: list[str] | None = None, flatten: bool = False, **options: Any
    ) -> Any:
        if not keys or not flatten or options:
            return read(fs, path, keys, flatten, **options)
        content = load_path(path, fs)
        found = {key: follow(content, key) for key in keys}
        odd = [
            key for key, value in found.items() if value is MISSING
        ]  # patterns, places in lists, no such key
        return found if not odd else read(fs, path, keys, flatten)

    serialize.load_path = param.load_path = load_path
    param.read_param_file = read_param_file


MISSING = object()


def follow(content: Any, key: str) -> Any:
    """What stands at `a.b.c` in nested mappings, or `MISSING`."""
    for name in key.split("."):
        if not isinstance(content, Mapping) or name not in content:
            return MISSING
        content = content[name]
    return content
