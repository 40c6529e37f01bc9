"""Several processes from one command: `textvae train` starts itself again, once for each process.

On GPUs that is `accelerate launch`; on the CPU, where that starts one process without an MPI, torch's own launcher.
"""

from __future__ import annotations

import os
import subprocess
import sys

import torch

from textvae.errors import TrainingError, UserError

STARTED = "TEXTVAE_STARTED"


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


def relaunch(processes: int | None) -> None:
    """Runs the same command line in several processes and waits for them.

    Raises:
        TrainingError: they ended with an error, which they have printed.
    """
    count = processes or torch.cuda.device_count()
    environment = dict(os.environ)
    if torch.cuda.is_available():
        command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(count), "--multi_gpu"]
        command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
        command += ["--main_process_port", "0", "--module", "textvae", *sys.argv[1:]]
    else:
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count)]
        # An endpoint of its own on the loopback: no host name is looked up, and two launches never meet.
        command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1"]
        command += ["--module", "textvae", *sys.argv[1:]]
        environment |= {"ACCELERATE_USE_CPU": "true"}
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    # A child that finds this never starts children of its own, whatever the launcher has told it.
    code = subprocess.run(command, check=False, env={**environment, STARTED: "1"}).returncode
    if code != 0:
        raise TrainingError(f"the training processes ended with exit code {code}; their messages are above")
