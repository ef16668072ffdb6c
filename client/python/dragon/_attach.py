"""Entering a runtime that is running: which one is meant, and attaching to it."""

import os

from dragon import _native
from dragon._errors import NoRuntimeError

_VARIABLE = "DRAGON_RUNTIME"
_LISTENS = 0x10000


def attach(job: str | int | None = None) -> None:
    """Attach this interpreter to a runtime that is running on this machine.

    That happens by itself at the first operation where the environment names the runtime (``DRAGON_RUNTIME``): in programs
    that ``dragon`` or ``srun --dragon`` started, and in ``dragon attach``. An interpreter that was started in another way
    calls this, before it uses the runtime.

    ``job`` is the name that ``dragon status`` prints, or a job of Slurm or PBS. Without it, it is the runtime that the
    environment names, else that of the job around this process, else the only one of the user on this machine.

    Raises :class:`NoRuntimeError` when there is none, or several and no word which, and when this interpreter is attached
    to another one.
    """
    if job is None and _VARIABLE in os.environ:
        named = os.environ[_VARIABLE]
        if not _native.is_attached() and not any(_is_runtime(name, named) for _, _, name in _listening()):
            raise NoRuntimeError(
                f"nobody listens on @{named}, which {_VARIABLE} names: that runtime has ended; unset {_VARIABLE}, "
                "or name another one: dragon.attach(job)"
            )
        return _native.attach()
    name = _choose(_listening(), None if job is None else str(job))
    if _native.is_attached() and os.environ.get(_VARIABLE) != name:
        raise NoRuntimeError(
            f"this interpreter is attached to @{os.environ.get(_VARIABLE)} already and cannot attach to @{name} too: "
            "use another interpreter"
        )
    before = os.environ.get(_VARIABLE)
    os.environ[_VARIABLE] = name
    try:
        _native.attach()
    except BaseException:
        # What was tried and failed is not what later operations try again.
        if before is None:
            del os.environ[_VARIABLE]
        else:
            os.environ[_VARIABLE] = before
        raise


def _listening() -> list[tuple[str, int, str]]:
    """Job, node and attach socket of the user's daemons on this machine, sorted."""
    found = []
    try:
        with open("/proc/net/unix", encoding="utf-8", errors="replace") as table:
            for line in table:
                fields = line.split()
                if len(fields) != 8 or not fields[7].startswith(f"@dragon/{os.getuid()}/"):
                    continue
                parts = fields[7][1:].split("/")
                if len(parts) == 5 and parts[3].isdigit() and int(fields[3], 16) & _LISTENS:
                    found.append((parts[2], int(parts[3]), fields[7][1:]))
    except OSError as error:
        raise NoRuntimeError(f"cannot look for runtimes in /proc/net/unix ({error}); set {_VARIABLE}") from error
    return sorted(found)


def _is_runtime(name: str, wanted: str) -> bool:
    """Whether an attach socket is the wanted one, or in a job of Slurm that of the same runtime on this node."""
    runtime = wanted.rsplit("/", 2)[0]
    of_job = runtime.rsplit("/", 1)[-1].startswith(os.environ.get("SLURM_JOB_ID", "-") + ".")
    return name == wanted or (of_job and name.startswith(runtime + "/"))


def _is_job(name: str, wanted: str) -> bool:
    """Whether a runtime is of a job: by its name, or as one of its steps. Those of PBS lack the domain of the server."""
    number, _, rest = wanted.partition(".")
    server, _, domain = rest.partition(".")
    names = [wanted] if not domain or domain.isdigit() else [wanted, f"{number}.{server}"]
    return any(name == job or name.startswith(job + ".") for job in names)


def _choose(found: list[tuple[str, int, str]], job: str | None) -> str:
    def of(wanted: str | None) -> list[str]:
        jobs = (j for j, _, _ in found if wanted is None or _is_job(j, wanted))
        return list(dict.fromkeys(jobs))

    jobs = of(job or os.environ.get("SLURM_JOB_ID") or os.environ.get("PBS_JOBID"))
    if not jobs and job is None:
        jobs = of(None)
    if len(jobs) == 1:
        # The first node of it that is on this machine.
        return next(name for j, _, name in found if j == jobs[0])
    others = ", ".join(of(None)) or "none"
    if job is not None and not jobs:
        raise NoRuntimeError(f"no runtime of yours on this machine is of job {job}; on this machine run: {others}")
    if not jobs:
        raise NoRuntimeError(
            "no runtime of yours runs on this machine; start one with `dragon PROGRAM`, or enter a job with `dragon attach --job`"
        )
    raise NoRuntimeError(f"{len(jobs)} runtimes of yours run on this machine; name one: dragon.attach({jobs[0]!r}); {', '.join(jobs)}")
