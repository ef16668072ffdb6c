"""Which of several equal processes this one is: a task of ``srun --dragon=spmd``, or a member of a group."""

from __future__ import annotations

import os

from dragon._errors import DragonError


def rank() -> int:
    """The number of this process among those that run the same program, counted from 0.

    For a task of ``srun --dragon=spmd`` it is the number that Slurm gave to the task, for a member of a group its number in
    the group.
    """
    return _number("DRAGON_RANK")


def local_rank() -> int:
    """The number of this process among those of them that run on its node, counted from 0."""
    return _number("DRAGON_LOCAL_RANK")


def size() -> int:
    """How many processes run the same program: the tasks of the step, or the members of the group."""
    return _number("DRAGON_GROUP_SIZE")


def _number(variable: str) -> int:
    text = os.environ.get(variable)
    if text is None:
        raise DragonError(
            f"this process has no rank ({variable} is not set): only tasks of srun --dragon=spmd and members of groups have one"
        )
    try:
        return int(text)
    except ValueError:
        raise DragonError(f"{variable}={text} is not a number; nobody but the runtime should set it") from None
