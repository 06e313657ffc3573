"""One job in one or many processes: process group, collectives, requests to stop, how it ends.

torchrun's agent notices when a rank ends with an error, ends the other ranks (SIGTERM, and SIGKILL
30 seconds later) and reports the first failure. The timeout of the process group ends ranks that
wait for one that hangs. This file adds one line instead of a traceback for errors that can be
foreseen, a stop flag on which all ranks agree, and a signal and a timer for what torchrun misses.
"""
import errno
import faulthandler
import os
import signal
import sys
import time
import traceback
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import record
from torch.multiprocessing import _prctl_pr_set_pdeathsig

# torchrun sets these, and vLLM reads them too. Without it the job is one process, also where a
# platform has set them.
processes_asked_for = int(os.environ.get("WORLD_SIZE", 1))
if "TORCHELASTIC_RUN_ID" not in os.environ:
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", LOCAL_WORLD_SIZE="1",
                      MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
rank, local_rank, world_size, local_world_size = (
    int(os.environ[name]) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"))
cuda = torch.cuda.is_available()
device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")


class State:
    """What this module remembers about this process."""
    activity = "set-up"    # what the process is doing, for messages
    timeout = 3600.0       # seconds without progress after which it is ended
    stop_signal = 0        # the latest SIGTERM, SIGHUP or SIGINT that it got, 0: none
    stop_time = 0.0        # when it got that signal, in seconds of time.monotonic()
    timer_start = 0.0      # when restart_timer last started the timer, likewise
    defer_signals = False  # whether a first signal only sets stop_signal, instead of interrupting


# ---- collectives ---------------------------------------------------------------------------------

def all_gather(value):
    """[rank 0's value, rank 1's, ...] on every rank. Any small Python object."""
    restart_timer()
    values = [value] * world_size
    if world_size > 1:
        dist.all_gather_object(values, value)
    return values


def all_reduce_sum(x):
    """Sum of a tensor over all ranks, in place."""
    if world_size > 1:
        dist.all_reduce(x)
    return x


def barrier():
    """Every rank waits here for all others."""
    all_gather(None)


def stop_requested():
    """Whether any rank got SIGTERM, SIGHUP (its terminal was closed) or Ctrl-C: the same answer on
    all ranks. A collective.

    After the first call, a first signal doesn't interrupt the process any more: it waits for the
    next call, so that a training step can end and be saved. A second Ctrl-C interrupts.
    """
    State.defer_signals = True
    return any(all_gather(State.stop_signal))


def on_signal(number, _):
    # A cluster and torchrun may both send a signal for the same reason, at nearly the same time.
    repeated = number != signal.SIGINT and time.monotonic() - State.stop_time < 1
    deferred = State.defer_signals and (not State.stop_signal or repeated)
    State.stop_signal, State.stop_time = number, time.monotonic()
    if not deferred:
        raise KeyboardInterrupt(f"stopped by {signal.Signals(number).name}")


# ---- start and end -------------------------------------------------------------------------------

def set_activity(name):
    """Name what this process does from here on, for messages about errors."""
    State.activity = name
    restart_timer()


def restart_timer():
    """Say that the process makes progress. If nothing says so for the timeout (and 20 seconds, in
    which the process group's own timeout may explain more), Python prints where each thread is and
    ends the process. This also finds an endless loop in a single process or inside vLLM."""
    if time.monotonic() - State.timer_start > 1:  # starting the timer takes a millisecond
        State.timer_start = time.monotonic()
        faulthandler.dump_traceback_later(State.timeout + 20, exit=True, file=sys.__stderr__)


def init_process_group(timeout_minutes=60.0):
    """Join the process group. Of several ranks, only rank 0 keeps its standard output."""
    if cuda:
        torch.cuda.set_device(device)
    store = dist.HashStore() if world_size == 1 else None  # None: the one of torchrun's agent
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", store=store, rank=rank,
                            world_size=world_size, timeout=timedelta(minutes=timeout_minutes))
    if rank > 0:
        sys.stdout = open(os.devnull, "w")


def outlive_reader(stream):
    """Send a stream's text to nowhere from its first error on: when its terminal is closed, or when
    Ctrl-C has ended the `tee` that reads it, a run has to go on, or to save its last steps."""
    def guarded(method):
        def call(*text):
            try:
                return method(*text)
            except OSError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return call
    stream.write, stream.flush = guarded(stream.write), guarded(stream.flush)


def run_stage(main, args, timeout_minutes=60.0, alone=False):
    """Call main(args) in every process of the job, then end the process: a stage's last line.

    timeout_minutes: how long a rank may wait for the others, or make no progress; alone: whether
    the stage runs in one process.
    """
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # by nohup
            signal.signal(number, on_signal)
    for stream in (sys.stdout, sys.stderr):
        outlive_reader(stream)
    if alone and world_size > 1:
        exit_with_error(f"{sys.argv[0]} runs in one process: start it with python")
    if not alone and processes_asked_for != world_size:
        exit_with_error(f"WORLD_SIZE={processes_asked_for} is set, but torchrun has not started "
                        "this process: start it with torchrun, or unset WORLD_SIZE")
    if "TORCHELASTIC_RUN_ID" in os.environ:
        _prctl_pr_set_pdeathsig(signal.SIGTERM)  # Linux sends it when torchrun is killed
    State.timeout, status = 60 * timeout_minutes, 1
    try:
        if not alone:
            init_process_group(timeout_minutes)
        rank_main(main, args)
        status = 0
    except KeyboardInterrupt as stop:
        status = 128 + State.stop_signal
        if rank == 0:
            print(stop, file=sys.stderr)
    except SystemExit as end:
        status = exit_status(end)
    except Exception:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # the interpreter's own end waits for gloo's and NCCL's threads, and may abort


@record  # writes the traceback for torchrun's report
def rank_main(main, args):
    try:
        main(args)
        barrier()  # no rank ends while another one may need it
    except Exception as error:
        if "by peer" in str(error):  # gloo lost its connection: another rank has failed
            let_torchrun_end_this_rank()
        line = foreseen(error)
        if line:
            sys.exit(line)
        raise


def let_torchrun_end_this_rank():
    """Wait, so that torchrun finds the rank that failed first, reports it, and ends this one."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(4)


def exit_status(end):
    """The status of a SystemExit. Its message, if it has one, is printed."""
    if not isinstance(end.code, str):
        return end.code or 0
    if local_rank > 0:  # if the first rank has found the same mistake, it alone says so
        let_torchrun_end_this_rank()
    print(end.code, file=sys.stderr, flush=True)
    return 1


def exit_with_error(message):
    """Exit with one line and status 1, for a mistake on the command line."""
    sys.exit(exit_status(SystemExit(f"error: {message}")))


def foreseen(error):
    """One line about memory or disk space that ran out; None for any other error."""
    text = " ".join(str(error).split())
    where = f"error: {f'rank {rank}, ' if world_size > 1 else ''}{State.activity}"
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "ried to allocate" in text:
        return (f"{where}: out of memory ({text[:200]}). Where vLLM samples or takes weights, "
                "lower --gpu_memory_utilization; else lower --micro_batch_tokens, set "
                "--checkpoint_activations=True or --offload=True, or use more GPUs")
    # safetensors and torch.save raise errors of their own, whose context is the system's error.
    numbers = {getattr(e, "errno", None) for e in (error, error.__context__)}
    if numbers & {errno.ENOSPC, errno.EDQUOT} or "No space left" in text:
        file = getattr(error, "filename", None) or "a file"
        return (f"{where}: no space left on the disk for {file}. All earlier files are intact: "
                "make room and run the same command again")
