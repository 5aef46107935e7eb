"""Commands on top, a folder a paper with one readable script a claim, and below them what they share.

Run from the repository root, as `python -m experiments.NAME` or `python -m experiments.PAPER.NAME`.
"""

import sys
from types import TracebackType


def _end_in_one_line(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    chain: BaseException | None = error
    while chain is not None and not isinstance(chain, KeyboardInterrupt):
        chain = chain.__cause__ or chain.__context__
    if chain is None:
        sys.__excepthook__(kind, error, trace)
    else:
        print("\nstopped", file=sys.stderr)


# Python is about to run one of these as a command, which Ctrl-C may meet while it still imports.
if sys.argv[:1] == ["-m"]:
    sys.excepthook = _end_in_one_line
