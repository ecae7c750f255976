"""Who may not send: one look-up a row, in the lists of members."""

from __future__ import annotations

from imray.kernels.arrays import I8, I32, I64, Bools
from imray.kernels.compiler import jit


@jit
def judge_senders(
    conv: I32,
    sender: I32,
    flags: I8,
    begins: I64,
    counts: I32,
    users: I32,
    codes: I8,
    code_min: int,
    closed: bool,
    out: Bools,
) -> int:
    """out[i] = True where row i may not be sent; how many may not.

    A conversation with flags has members: users[begin : begin + count], ascending, with their roles' codes, and a
    sender (-1: no user that is known) needs `code_min` there. In every other one nobody may send if `closed`."""
    forbidden = 0
    for i in range(len(conv)):
        c = conv[i]
        if c >= len(flags) or flags[c] == 0:
            out[i] = closed
            forbidden += closed
            continue
        low = begins[c]
        end = low + counts[c]
        high = end
        while low < high:
            middle = (low + high) // 2
            if users[middle] < sender[i]:
                low = middle + 1
            else:
                high = middle
        out[i] = not (low < end and users[low] == sender[i] and codes[low] >= code_min)
        forbidden += out[i]
    return forbidden
