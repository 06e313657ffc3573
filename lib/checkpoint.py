"""Checkpoints from which a training run continues: <out>/ckpt/step-NNNNNN, after NNNNNN steps.

Each holds the float32 weights and AdamW's state, every rank's shard in a file of its own
(torch.distributed.checkpoint redistributes them to any number of ranks), and checkpoint.json with
the run's constants. Nothing else is needed: data order, sampling seeds and learning rate are
functions of the step, the reference is the initial model, and metrics.jsonl is a file already. All
ranks call these functions together.
"""
import json
import logging
import shutil
import time

from lib.cli import check
from lib.distributed import all_gather, rank
from lib.files import atomic_dir, files_in, read_json, remove

import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (StateDictOptions, get_state_dict,
                                                     set_state_dict)

# {constant: the fingerprint that covers it}. If that is the same, the constant may have another
# value, such as the path of a copy of the model.
COVERED = {"model": "model", "task": "prompts", "chat_template_kwargs": "prompts"}

# Weights that an adapter changes are not part of a checkpoint.
TRAINED = StateDictOptions(ignore_frozen_params=True, strict=False)


def all_checkpoints(folder):
    """Paths of the finished checkpoints of the run in `folder`, oldest first."""
    return files_in(f"{folder}/ckpt", r"step-\d{6}")


def find_checkpoint(folder, constants, may_differ):
    """(path, steps) of the newest checkpoint, or (None, 0). Raises ValueError if it has other
    constants than these, may_differ aside, and if not all ranks see the same checkpoints."""
    path = max(all_checkpoints(folder), default=None)
    check(len(set(all_gather(path))) == 1,
          f"{folder}/ckpt: not all ranks see the same checkpoints; --out must be on a file system "
          "that all machines share")
    if path is None:
        return None, 0
    try:
        saved = read_json(f"{path}/checkpoint.json")["constants"]
    except (OSError, ValueError, KeyError) as e:
        raise ValueError(damaged(path, e)) from None
    check_constants(path, saved, constants, may_differ)
    return path, int(path[-6:])


def check_constants(path, saved, constants, may_differ):
    """Raises ValueError if what is in `path` was trained with other constants than these."""
    same = {name for name, part in COVERED.items()
            if saved.get(f"fingerprint of {part}", 0) == constants.get(f"fingerprint of {part}")}
    for name, value in constants.items():
        check(name in may_differ or name in same or saved.get(name) == value,
              f"{path} was trained with {name} = {saved.get(name)!r}, this run has {value!r}; "
              "choose another --out, or start anew with --resume=False")


def damaged(path, error):
    return (f"{path} is damaged ({type(error).__name__}: {' '.join(str(error).split())[-200:]}); "
            "move it away, and the same command continues from the one before it")


def save_checkpoint(folder, steps, trained, optimizer, constants, keep):
    """Write the checkpoint after `steps` steps, then delete all but the `keep` newest. Raises
    OSError if it can't be written, saying how much room it takes; older ones stay intact.

    trained: the module whose parameters the optimizer has, a policy or more than that.
    """
    path = f"{folder}/ckpt/step-{steps:06d}"
    older = [p for p in all_checkpoints(folder) if p < path]
    weights, state = get_state_dict(trained, optimizer, options=TRAINED)
    try:
        with atomic_dir(path) as temporary:
            dcp.save({"policy": weights, "optimizer": state}, checkpoint_id=temporary)
            if rank == 0:
                with open(f"{temporary}/checkpoint.json", "w") as f:
                    json.dump({"constants": constants}, f, indent=2)
    except (OSError, CheckpointException) as e:
        needed = 12 * sum(p.numel() for p in trained.parameters() if p.requires_grad)
        free = shutil.disk_usage(folder).free
        rest = (f"{older[-1]} is intact: make room, and the same command continues from it" if older
                else "Make room and start again")
        raise OSError(f"{path} could not be written: it takes {needed / 1e9:,.3f} GB, "
                      f"{free / 1e9:,.3f} GB are free ({cause_of(e)}). {rest}") from None
    if rank == 0:
        for superseded in older[:max(0, len(older) + 1 - keep)]:
            remove(superseded)


def load_checkpoint(path, trained, optimizer):
    """Load the weights and AdamW's state. Raises ValueError if the content is damaged."""
    weights, state = get_state_dict(trained, optimizer, options=TRAINED)
    logging.disable(logging.WARNING)  # torch would log a traceback for each rank
    try:
        dcp.load({"policy": weights, "optimizer": state}, checkpoint_id=path)
    except CheckpointException as e:
        cause = cause_of(e)
        if isinstance(cause, (OSError, MemoryError)) and not isinstance(cause, FileNotFoundError):
            raise cause from None  # the checkpoint itself may be whole
        raise ValueError(damaged(path, cause)) from None
    finally:
        logging.disable(logging.NOTSET)
    set_state_dict(trained, optimizer, model_state_dict=weights, optim_state_dict=state,
                   options=TRAINED)


def cause_of(error):
    """The first rank's error in a CheckpointException. KeyboardInterrupt is raised again."""
    if isinstance(error, CheckpointException):
        error = next(iter(error.failures.values()))[0]
    if isinstance(error, KeyboardInterrupt):
        raise error from None
    return error


def clean_folder(folder, steps):
    """Before training: delete what a killed run left unfinished, and what belongs to later steps
    than the first `steps`, from which the run continues: evaluations, rollouts and, with
    steps = -1, the checkpoints of an earlier run.

    Raises OSError or ValueError if a folder can't be written there, or isn't seen by all machines.
    """
    name = f"{all_gather(time.time_ns())[0]}.probe"  # new, so no machine has it in its cache
    with atomic_dir(f"{folder}/ckpt/{name}"):
        pass
    if rank == 0:
        of_steps = [*all_checkpoints(folder), *files_in(folder, r"eval-\d{6}\.jsonl"),
                    *files_in(f"{folder}/rollouts", r"step-\d{6}\.jsonl")]
        for path in [*files_in(f"{folder}/ckpt", r".*\.(probe|tmp)"),
                     *(p for p in of_steps if int(p.removesuffix(".jsonl")[-6:]) > steps)]:
            remove(path)
