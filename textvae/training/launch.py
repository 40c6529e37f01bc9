"""Several processes from one command: `textvae train` starts itself again under `accelerate launch`."""

from __future__ import annotations

import os
import subprocess
import sys

import torch

from textvae.errors import TrainingError, UserError


def wanted(processes: int | None) -> bool:
    """Returns whether this process should start the training processes rather than train.

    Args:
        processes: how many the user asked for; None means every GPU, or one process without a GPU.

    Raises:
        UserError: a number below 1.
    """
    if "RANK" in os.environ or "LOCAL_RANK" in os.environ:
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
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(count)]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    command += ["--multi_gpu"] if torch.cuda.is_available() else ["--cpu", "--num_cpu_threads_per_process", "1"]
    command += ["--module", "textvae", *sys.argv[1:]]
    code = subprocess.run(command, check=False).returncode
    if code != 0:
        raise TrainingError(f"the training processes ended with exit code {code}; their messages are above")
