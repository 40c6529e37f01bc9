"""Several processes from one command: it starts itself again, once for each process, by torch's launcher.

`accelerate launch` starts one process on a CPU without an MPI, and as a child of this one it would have to be told of
signals. What it says to its processes beside what torch's launcher says, accelerate finds out by itself.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import logging
import os
import signal
import site
import sys
import tempfile
import uuid
from pathlib import Path
from typing import NoReturn

import torch

from textvae.distributed import rank
from textvae.errors import Interrupted, TrainingError, UserError

STARTED = "TEXTVAE_STARTED"
PR_SET_PDEATHSIG = 1  # of Linux's prctl
GO_ON = "What was saved can be gone on from with --resume"


def end_with_launcher() -> None:
    """Has the system tell this process to save and end where its launcher dies, which could not tell it any more."""
    if STARTED in os.environ and "RANK" in os.environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _find_textvae_again() -> None:
    """A clone that is not installed is found by the processes, too, which do not look into the current folder."""
    place = str(Path(__file__).resolve().parents[1])
    if place not in site.getsitepackages():
        before = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = place if not before else f"{place}{os.pathsep}{before}"


def wanted(processes: int | None) -> bool:
    """Returns whether this process should start the training processes rather than train.

    Args:
        processes: how many the user asked for; None means every GPU, or one process without a GPU.

    Raises:
        UserError: a number below 1.
    """
    if STARTED in os.environ or "RANK" in os.environ or "LOCAL_RANK" in os.environ:
        return False  # started by accelerate launch (or torchrun) already
    if processes is not None and processes < 1:
        raise UserError(f"--processes: got {processes}; it must be 1 or more")
    return (processes or torch.cuda.device_count() or 1) > 1


def has_gpu() -> bool:
    """Whether this machine has a GPU."""
    return torch.cuda.is_available()


def joined(*, gpus: bool) -> bool:
    """Returns whether this process is one of several, which it joins; only the first keeps its standard output.

    Args:
        gpus: whether they work on GPUs, each on its own.

    Raises:
        UserError: the environment speaks of several, and not of how to reach them.
    """
    several = os.environ.get("WORLD_SIZE", "1")
    if not several.isdecimal():
        raise UserError(f"environment: WORLD_SIZE={several}; it should be how many processes there are")
    if int(several) < 2:
        return False
    end_with_launcher()
    from accelerate import PartialState

    try:
        PartialState(cpu=not gpus)
    except ValueError as error:
        message = f"environment: WORLD_SIZE={several} asks for several processes, and they cannot meet: {error}"
        raise UserError(message) from error
    atexit.register(leave)
    if not is_first():
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def leave() -> None:
    """Ends this process's connections to the others; one that ends with them open can bring another down."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def end(code: int) -> NoReturn:
    """Ends this process, one of several, with that exit code: its work is done, and python's own end is left out.

    There a thread of torch's that comes back for the interpreter's lock is torn down inside a destructor of C++, which
    aborts ("terminate called without an active exception"): rarely, but then a run that is whole counts as failed.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # its reader may have left
            stream.flush()
    os._exit(code)


def is_first() -> bool:
    """Whether this process is the one that speaks: the only one, or the first of several."""
    return rank() == 0


def relaunch(processes: int | None, *, gpus: bool, then: str = "") -> None:
    """Runs the same command line in several processes and waits for them; one that dies ends them all.

    Args:
        processes: how many; every GPU where absent.
        gpus: whether they work on GPUs, each on its own.
        then: what the user can do when they have ended early.

    Raises:
        UserError: fewer GPUs than processes.
        Interrupted: a signal ended them, which each was given the time to save for.
        TrainingError: they ended with an error; names the process and its signal, or refers to what it has printed.
    """
    from accelerate.utils import check_cuda_p2p_ib_support
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    count = processes or torch.cuda.device_count()
    if gpus and count > torch.cuda.device_count():
        raise UserError(f"--processes: got {count}, one to a GPU, and there are {torch.cuda.device_count()}")
    # A child that finds this never starts children of its own, whatever the launcher has told it.
    os.environ[STARTED] = "1"
    if not gpus:
        os.environ["ACCELERATE_USE_CPU"] = "true"
    elif not check_cuda_p2p_ib_support():  # cards that cannot write into each other's memory
        os.environ.setdefault("NCCL_P2P_DISABLE", "1")
        os.environ.setdefault("NCCL_IB_DISABLE", "1")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    _find_textvae_again()
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # started by nohup
        os.environ.setdefault("TORCHELASTIC_SIGNALS_TO_HANDLE", "SIGTERM,SIGINT,SIGQUIT")
    for name in ("", ".agent.server.api"):  # what they would say stands below
        logging.getLogger(f"torch.distributed.elastic{name}").setLevel(logging.CRITICAL)
    try:
        with tempfile.TemporaryDirectory() as logs:
            # An endpoint of its own on the loopback: no host name is looked up, and two launches never meet.
            config = LaunchConfig(
                min_nodes=1,
                max_nodes=1,
                nproc_per_node=count,
                logs_specs=DefaultLogsSpecs(log_dir=logs),  # torch's own is left behind
                run_id=uuid.uuid4().hex,
                rdzv_backend="c10d",
                rdzv_endpoint="127.0.0.1:0",
                local_addr="127.0.0.1",
                max_restarts=0,
            )
            elastic_launch(config, sys.executable)("-u", "-P", "-m", "textvae", *sys.argv[1:])
    except SignalException as error:  # passed on to the processes, which have saved and ended
        raise Interrupted(f"stopped by {error.sigval.name}. {then}".rstrip()) from error
    except ChildFailedError as error:
        number, failure = error.get_first_failure()
        if failure.exitcode == Interrupted.exit_code:  # a signal to one of them, and all have saved and ended
            raise Interrupted(f"stopped in process {number} of {count}. {then}".rstrip()) from error
        if failure.exitcode >= 0:
            then = "" if failure.exitcode == UserError.exit_code else then  # a mistake of the user's saves nothing
            raise TrainingError(
                f"process {number} of {count} ended with exit code {failure.exitcode}; "
                f"its message is above. {then}".rstrip()
            ) from error
        name = failure.signal_name()
        hint = " (often the system's, out of memory)" if name == "SIGKILL" else ""
        raise TrainingError(
            f"process {number} of {count} was ended by {name}{hint}, and the others with it. {then}".rstrip()
        ) from error
