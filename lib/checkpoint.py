"""Checkpoints from which a training run continues: <out>/ckpt/step-NNNNNN, after so many steps.

Each holds the float32 weights and AdamW's state of what is trained, every rank's shard in a file of
its own (torch.distributed.checkpoint redistributes them to any number of ranks), and
checkpoint.json: the run's constants, and the size of every file, which shows a damaged one. Nothing
else is needed: data order, sampling seeds and learning rate are functions of the step, the
reference is the initial model, and metrics.jsonl is a file already. All ranks call these functions
together.
"""
import json
import logging
import os
import shutil
import time
from glob import glob

from lib.cli import check
from lib.distributed import all_gather, rank
from lib.files import atomic_dir

import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict


def all_checkpoints(folder):
    """Paths of the finished checkpoints of the run in `folder`, oldest first."""
    return sorted(glob(os.path.join(folder, "ckpt", "step-" + "[0-9]" * 6)))


def find_checkpoint(folder, constants, may_differ):
    """(path, steps) of the newest whole checkpoint, (None, 0) if there is none.

    A damaged one is skipped with a warning. Raises ValueError if it was trained with other
    constants than these, may_differ aside; if there are checkpoints, but all are damaged; and if
    not all ranks see the same.
    """
    path, damage = None, ""
    for candidate in reversed(all_checkpoints(folder)):
        try:
            with open(os.path.join(candidate, "checkpoint.json")) as f:
                saved = json.load(f)
            for name, size in saved["bytes"].items():
                found = os.path.getsize(os.path.join(candidate, name))
                check(found == size, f"{name} has {found:,} of {size:,} bytes")
            path = candidate
            break
        except (OSError, ValueError, KeyError) as e:
            damage = f"{candidate} is damaged ({e})"
            print(f"warning: {damage}; trying the one before it")
    check(path or not damage, f"{damage}, and there is no other; start anew with --resume=False")
    check(len(set(all_gather(path))) == 1,
          f"{folder}/ckpt: not all ranks see the same checkpoints; --out must be on a file system "
          "that all machines share")
    if path is None:
        return None, 0
    for name, value in constants.items():
        before = saved["constants"].get(name)
        check(name in may_differ or before == value,
              f"{path} was trained with {name} = {before!r}, this run has {value!r}; choose "
              "another --out, or start anew with --resume=False")
    return path, int(path[-6:])


def save_checkpoint(folder, steps, trained, optimizer, constants, keep):
    """Write the checkpoint after `steps` steps, then delete all but the `keep` newest.

    trained: the module whose parameters the optimizer has, a policy or more than that.
    Raises OSError if it can't be written, saying how much room it takes; older ones stay intact.
    """
    path = os.path.join(folder, "ckpt", f"step-{steps:06d}")
    weights, state = get_state_dict(trained, optimizer)
    try:
        with atomic_dir(path) as temporary:
            dcp.save({"policy": weights, "optimizer": state}, checkpoint_id=temporary)
            # Each rank reports its own files' sizes: another machine may see them late.
            own = [name for name in os.listdir(temporary) if name.startswith(f"__{rank}_")]
            own += [".metadata"] if rank == 0 else []
            sizes = {n: os.path.getsize(os.path.join(temporary, n)) for n in own}
            sizes = {n: size for part in all_gather(sizes) for n, size in part.items()}
            if rank == 0:
                with open(os.path.join(temporary, "checkpoint.json"), "w") as f:
                    json.dump({"constants": constants, "bytes": sizes}, f, indent=2)
    except (OSError, CheckpointException) as e:
        cause = cause_of(e)
        needed = 12 * sum(p.numel() for p in trained.parameters())
        free = shutil.disk_usage(folder).free
        older = [p for p in all_checkpoints(folder) if p < path]
        rest = (f"{older[-1]} is intact: make room, and the same command continues from it" if older
                else "Make room and start again")
        raise OSError(f"{path} could not be written: it takes {needed / 1e9:,.3f} GB, "
                      f"{free / 1e9:,.3f} GB are free ({one_line(cause)}). {rest}") from None
    if rank == 0:
        older = [p for p in all_checkpoints(folder) if p < path]
        damaged = [p for p in all_checkpoints(folder) if p > path]  # or the run had continued there
        for superseded in older[:max(0, len(older) + 1 - keep)] + damaged:
            shutil.rmtree(superseded)


def load_checkpoint(path, trained, optimizer):
    """Load the weights and AdamW's state. Raises ValueError if the content is damaged."""
    weights, state = get_state_dict(trained, optimizer)
    logging.disable(logging.WARNING)  # torch would log a traceback for each rank
    try:
        dcp.load({"policy": weights, "optimizer": state}, checkpoint_id=path)
    except CheckpointException as e:
        cause = cause_of(e)
        if isinstance(cause, (OSError, MemoryError)):  # the checkpoint itself may be whole
            raise cause from None
        raise ValueError(f"{path} can't be read ({one_line(cause)}); move it away, and the same "
                         "command continues from the one before it") from None
    finally:
        logging.disable(logging.NOTSET)
    set_state_dict(trained, optimizer, model_state_dict=weights, optim_state_dict=state)


def cause_of(error):
    """The first rank's error in a CheckpointException. KeyboardInterrupt is raised again."""
    if isinstance(error, CheckpointException):
        error = next(iter(error.failures.values()))[0]
    if isinstance(error, KeyboardInterrupt):
        raise error from None
    return error


def one_line(error):
    return f"{type(error).__name__}: {' '.join(str(error).split())[-200:]}"


def clean_checkpoints(folder, delete_all):
    """Before training: delete what a killed run left unfinished; with delete_all, all checkpoints.

    Raises OSError or ValueError if a folder can't be written there, or isn't seen by all machines.
    """
    name = f"{all_gather(time.time_ns())[0]}.probe"  # new, so no machine has it in its cache
    with atomic_dir(os.path.join(folder, "ckpt", name)):
        pass
    if rank == 0:
        left = [path for ending in ("*.probe", "*.tmp", "*.old")
                for path in glob(os.path.join(folder, "ckpt", ending))]
        for path in left + (all_checkpoints(folder) if delete_all else []):
            shutil.rmtree(path)
