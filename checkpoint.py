"""Checkpoints of a training run, from which it goes on after anything: <out>/ckpt/step-NNNNNN, named after the steps done.

Each holds the policy's float32 weights and AdamW's state, every rank's shard in files of its own (torch.distributed.checkpoint
puts them together for any number of ranks), and checkpoint.json: the constants of the run, and the size of every file, by
which a damaged one is known. They are written under another name first, so a kill at any instant leaves those before whole.

Nothing else needs saving: data order and sampling seeds are functions of the step. All ranks call these functions together.
"""
import json
import logging
import os
import shutil
import time
from glob import glob

from common import check, whole_folder

import torch.distributed.checkpoint as dcp  # common comes before torch, to quiet it
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

import job


def all_of(folder):
    """Paths of the finished checkpoints of the run in `folder`, oldest first."""
    return sorted(glob(os.path.join(folder, "ckpt", "step-" + "[0-9]" * 6)))


def newest(folder, constants, may_differ):
    """(path, steps done) of the newest whole checkpoint, (None, 0) if there is none. A damaged one is skipped with a warning.

    Raises ValueError if it was trained with other constants than these, may_differ aside, naming the first; if there are
    checkpoints, but none is whole; and if not all processes see the same.
    """
    path, damage = None, ""
    for candidate in reversed(all_of(folder)):
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
            print(f"warning: {damage}; going on from the one before it")
    check(path or not damage, f"{damage}, and no other is left; begin anew with --resume=False")
    check(len(set(job.gather(path))) == 1, f"{folder}/ckpt: not every process sees the same checkpoints there; --out must be "
          "on a file system that all machines share")
    if path is None:
        return None, 0
    for name, value in constants.items():
        check(name in may_differ or saved["constants"].get(name) == value, f"{path} was trained with {name} = "
              f"{saved['constants'].get(name)!r}, this run has {value!r}; choose another --out, or begin anew with "
              "--resume=False")
    return path, int(path[-6:])


def save(folder, steps, policy, optimizer, constants, keep):
    """Write the checkpoint after so many steps, then delete all but the `keep` newest.

    Raises OSError if it can't be written, saying how much room it takes; those before are as they were.
    """
    path = os.path.join(folder, "ckpt", f"step-{steps:06d}")
    weights, state = get_state_dict(policy, optimizer)
    try:
        with whole_folder(path) as temporary:
            dcp.save({"policy": weights, "optimizer": state}, checkpoint_id=temporary)
            # Each rank reports what it wrote itself: of others' files a network file system may know late.
            own = [name for name in os.listdir(temporary) if name.startswith(f"__{job.rank}_")]
            own += [".metadata"] * (job.rank == 0)
            sizes = job.gather({name: os.path.getsize(os.path.join(temporary, name)) for name in own})
            if job.rank == 0:
                with open(os.path.join(temporary, "checkpoint.json"), "w") as f:
                    json.dump({"constants": constants, "bytes": {k: v for part in sizes for k, v in part.items()}}, f, indent=2)
    except (OSError, CheckpointException) as e:
        cause = cause_of(e)
        if isinstance(cause, SystemExit):  # a request to stop
            raise cause from None
        needed, free = 12 * sum(p.numel() for p in policy.parameters()), shutil.disk_usage(folder).free
        before = [p for p in all_of(folder) if p < path]
        advice = f"{before[-1]} is intact: make room, and the same command goes on" if before else "Make room and start again"
        raise OSError(f"{path} could not be written: it takes {needed / 1e9:,.3f} GB, {free / 1e9:,.3f} GB are free "
                      f"({in_one_line(cause)}). {advice}") from None
    if job.rank == 0:
        older = [p for p in all_of(folder) if p < path]
        damaged = [p for p in all_of(folder) if p > path]  # or this run would have gone on from there
        for superseded in older[:max(0, len(older) + 1 - keep)] + damaged:
            shutil.rmtree(superseded)


def load(path, policy, optimizer):
    """Put a checkpoint's weights and AdamW state into `policy` and `optimizer`. Raises ValueError if its content is damaged."""
    weights, state = get_state_dict(policy, optimizer)
    logging.disable(logging.WARNING)  # torch would log the tracebacks of what is told in one line here
    try:
        dcp.load({"policy": weights, "optimizer": state}, checkpoint_id=path)
    except CheckpointException as e:
        cause = cause_of(e)
        if isinstance(cause, (SystemExit, OSError, MemoryError)):  # nothing that speaks against the checkpoint
            raise cause from None
        raise ValueError(f"{path} can't be read ({in_one_line(cause)}); move it away, and the same command goes on from the "
                         "one before it") from None
    finally:
        logging.disable(logging.NOTSET)
    set_state_dict(policy, optimizer, model_state_dict=weights, optim_state_dict=state)


def cause_of(error):
    """The error itself: torch.distributed.checkpoint wraps those of all ranks into one, here the first of them counts."""
    return next(iter(error.failures.values()))[0] if isinstance(error, CheckpointException) else error


def in_one_line(error):
    return f"{type(error).__name__}: {' '.join(str(error).split())[-200:]}"


def make_ready(folder, anew):
    """Before training: delete what a killed run left half-written; anew: all checkpoints, too. Raises OSError or ValueError if
    nothing can be written there, or if not all machines see it: better now than at the first checkpoint."""
    probe = f"{job.gather(time.time_ns())[0]}.probe"  # a name that no machine can have in its cache
    with whole_folder(os.path.join(folder, "ckpt", probe)):
        pass
    if job.rank == 0:
        leftovers = [path for kind in ("*.probe", "*.tmp", "*.old") for path in glob(os.path.join(folder, "ckpt", kind))]
        for path in leftovers + (all_of(folder) if anew else []):
            shutil.rmtree(path)
