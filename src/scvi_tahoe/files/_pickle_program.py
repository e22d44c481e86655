"""A pickle is a program; what it would do is read off its operations before any of them is carried out."""

from __future__ import annotations

import pickletools

from scvi_tahoe.files._limits import UnsafeFileError

__all__ = ["verify_pickle"]

_MAX_OPERATIONS = 2_000_000
#: Values that tuples may stand for through references to each other. Hashing one visits all of them.
_MAX_REPEATED = 3_000_000
_TUPLES = frozenset({"EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET"})
_REMEMBERS = frozenset({"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"})
_RECALLS = frozenset({"GET", "BINGET", "LONG_BINGET"})
_MARK = pickletools.markobject
#: By operation: whether it takes everything down to a mark, how many it takes below that, which it puts are marks.
_EFFECTS = {
    op.name: (
        _MARK in op.stack_before,
        op.stack_before.index(_MARK) if _MARK in op.stack_before else len(op.stack_before),
        tuple(kind is _MARK for kind in op.stack_after),
    )
    for op in pickletools.opcodes
}


def verify_pickle(data: bytes) -> None:
    """Refuse what needs no name to do harm: endless programs, absurd memo sizes, tuples of tuples of tuples.

    Only the first program in ``data`` is looked at, as only that one would be carried out.

    Raises
    ------
    UnsafeFileError
        If the program does something of the kind.
    ValueError
        If the data are no pickle.
    """
    stack: list[int | None] = []  # values that each object stands for; None is a mark
    memo: dict[int, int] = {}
    repeated = 0
    for count, (operation, argument, _) in enumerate(pickletools.genops(data)):
        name = operation.name
        if count > _MAX_OPERATIONS:
            raise UnsafeFileError(f"the pickle has more than {_MAX_OPERATIONS:,} operations.")
        if name.startswith("EXT") or name in ("INST", "DUP"):
            raise UnsafeFileError(f"the pickle uses {name}, which plain data never need.")
        if name in _REMEMBERS:
            place = len(memo) if name == "MEMOIZE" else int(argument or 0)
            if place > count:
                raise UnsafeFileError("the pickle claims a memo larger than itself.")
            memo[place] = _top(stack)
        elif name in _RECALLS:
            size = memo.get(int(argument or 0), 1)
            repeated += size - 1
            if repeated > _MAX_REPEATED:
                raise UnsafeFileError(f"its tuples repeat each other more than {_MAX_REPEATED:,} times.")
            stack.append(size)
        else:
            _step(stack, operation)


def _step(stack: list[int | None], operation: pickletools.OpcodeInfo) -> None:
    """Take from the stack and put on it what an operation does."""
    name = operation.name
    to_mark, below, kinds = _EFFECTS[name]
    total = 1
    if to_mark or (name == "POP" and stack and stack[-1] is None):
        while stack and (size := stack.pop()) is not None:
            total += size
        below = below if to_mark else 0
    for _ in range(below):
        total += (stack.pop() if stack else None) or 1
    for is_mark in kinds:
        stack.append(None if is_mark else total if name in _TUPLES else 1)


def _top(stack: list[int | None]) -> int:
    return (stack[-1] if stack else None) or 1
