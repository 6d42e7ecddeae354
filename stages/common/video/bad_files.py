"""What happens to videos that cannot be used: skipped and counted, or refused."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from stages.common.stage.errors import InputError
from stages.common.video.reading import VideoError

OnBad = Literal["skip", "refuse"]


class BadFiles:
    """Remembers why files were skipped; `reasons` has one line for each."""

    def __init__(self, policy: OnBad) -> None:
        self.policy = policy
        self.reasons: list[str] = []

    @contextmanager
    def tolerated(self) -> Iterator[None]:
        """Around the work on one file: a `VideoError` is recorded when the policy is `skip`, else it goes on up."""
        try:
            yield
        except VideoError as error:
            if self.policy == "refuse":
                raise VideoError(f"{error}; replace the file, or set on_bad to skip") from None
            self.reasons.append(str(error))

    def demand(self, left: int, what: str) -> None:
        """Refuse to go on when no file is left.

        Raises:
            InputError: `left` is 0.
        """
        if left == 0:
            first = f"; the first: {self.reasons[0]}" if self.reasons else ""
            raise InputError(f"{what}: no usable video ({len(self.reasons)} skipped{first})")
