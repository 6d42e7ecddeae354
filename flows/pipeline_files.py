"""What `dvc.yaml` and `dvc.lock` files say, parsed once for all flows.

DVC parses them in every process, at 50 µs a line: with 44,000 lines of locks, a third of a flow with nothing to do. What a
text parses to is kept as JSON under the text's digest, so that nothing depends on file times.
"""

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any


class PipelineFiles:
    """Parses for the DVC of this process; `path` keeps what this and earlier processes have parsed."""

    def __init__(self, path: Path) -> None:
        import dvc.utils.strictyaml as strictyaml
        from dvc.utils.serialize import parse_yaml

        self._path, self._parse = path, parse_yaml
        self._kept = path.read_text(errors="replace") if path.exists() else ""
        self._known = dict(line.split(" ", 1) for line in self._kept.splitlines() if " " in line)
        self._used: dict[str, str] = {}
        strictyaml.parse_yaml = self.parse

    def parse(self, text: str, path: str, typ: str = "safe") -> Any:
        """What DVC's `parse_yaml` returns, an object of the caller's own."""
        if typ != "safe":
            return self._parse(text, path, typ)
        digest = hashlib.sha256(text.encode()).hexdigest()
        if digest in self._known:
            try:
                content = json.loads(self._known[digest])
                self._used[digest] = self._known[digest]
                return content
            except ValueError:  # a damaged line
                del self._known[digest]
        content = self._parse(text, path, typ)
        try:
            entry = json.dumps(content)
        except TypeError:  # a date, say: YAML knows more than JSON
            return content
        if json.loads(entry) == content:
            self._known[digest] = self._used[digest] = entry
        return content

    def save(self) -> None:
        """Keep what this process has needed, and nothing else; a flow goes on where it cannot be written."""
        text = "".join(f"{digest} {entry}\n" for digest, entry in self._used.items())
        if text == self._kept:
            return
        new = self._path.with_suffix(f".{os.getpid()}")
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            new.write_text(text)
            new.replace(self._path)
            self._kept = text
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)
