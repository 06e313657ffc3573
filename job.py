"""Many processes as one job: they start together, exchange what they know, and end together, with one message.

    torchrun --nproc_per_node=8 train_apo.py                                                  # one machine
    torchrun --nnodes=2 --node_rank=0 --master_addr=10.0.0.1 --nproc_per_node=8 train_apo.py  # node_rank=1 on the other
    python train_apo.py                                                                       # a job of one

Left to themselves the others hang when a rank raises, is killed or gets stuck: they wait for it in a collective, for as long
as its timeout allows. So each process has a watcher, a thread that once a second puts a beat into the job's key-value store
and reads those of the others. It ends its process, whatever the main thread is waiting for, when
  - a rank has left a verdict: why the job ends. The first verdict stands, and is printed once;
  - a process of the same machine is gone without having said that it is done;
  - for `hang_limit` seconds a rank has not begun or not beaten, or none has got on (while one is in set-up, ten times that).
"""
import errno
import faulthandler
import json
import os
import re
import signal
import socket
import sys
import threading
import time
import traceback
from contextlib import suppress
from datetime import timedelta

import torch
import torch.distributed as dist

# What torchrun sets; under plain python a job of one.
for name, value in (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_WORLD_SIZE", 1), ("MASTER_PORT", 0)):
    os.environ.setdefault(name, str(value))
os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
rank, local_rank, world, local_world = (int(os.environ[name]) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE",
                                                                           "LOCAL_WORLD_SIZE"))
cuda = torch.cuda.is_available()
device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
# Else torch's NCCL watchdog ends the processes that talked to a lost one, and it is they who look like the culprits.
os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
machine = f"{socket.gethostname()}, node {os.environ.get('GROUP_RANK', 0)}"  # two machines may bear the same name

SET_UP = 10  # times hang_limit is what set-up may take, as it may download
ONWARD = "The same command goes on from what was last saved."
LOST = f"error: lost the connection to the job's first node: torchrun ended there, or the network failed. {ONWARD}"


class Me:
    """This process, as its watcher and the other ranks see it."""
    where = "set-up"     # the phase it is in, in words
    phases = ticks = 0   # how many it has begun, and how often it got on within them
    done = threading.Event()  # all is done, it is just about to end
    stop = 0             # the signal by which this rank or another was asked to end
    patient = False      # whether the main thread looks at `stop` by itself, or is interrupted
    store = None         # the job's key-value store, over a connection in which nobody waits for a key
    last = {}            # {rank: its last beat}
    watcher = None
    ending = threading.Lock()


class Stopped(SystemExit):
    """By a signal, .code."""
    def __init__(self, number, text=""):
        super().__init__(number)
        self.text = text or f"stopped by {signal.Signals(number).name}"


# ---- for the stages ----------------------------------------------------------------------------------------------

def phase(name):
    """The main thread begins something new. Messages name it."""
    Me.where, Me.phases, Me.ticks = name, Me.phases + 1, 0


def tick():
    """The main thread got on: to be called at least every `hang_limit` seconds."""
    Me.ticks += 1


def gather(value):
    """[rank 0's value, rank 1's, ...] on every rank. Any Python object, so not for what is large."""
    if world == 1:
        return [value]
    tick()  # who waits for the others is ahead of them
    values = [None] * world
    dist.all_gather_object(values, value)
    return values


def total(x):
    """Sum of a tensor over the ranks, in place."""
    if world > 1:
        tick()
        dist.all_reduce(x)
    return x


def barrier():
    """All ranks get here before any goes on."""
    gather(None)


def stopping():
    """The signal that asked the job to end, or 0: the same answer on every rank, a collective. From the first call on SIGTERM
    and Ctrl-C wait for the next one; only a second Ctrl-C interrupts."""
    Me.patient = True
    return max(gather(Me.stop))


# ---- start and end -----------------------------------------------------------------------------------------------

def start(hang_limit=0.0):
    """Join the process group, watched from here on; hang_limit 0: unwatched, for a job of one. Of many processes only rank 0
    prints to stdout."""
    if world == 1:
        waits = Me.store = dist.HashStore()
    else:
        # torchrun keeps the store in a process of its own, so it outlives any rank. Two connections: while somebody waits for a
        # key, as who sets up a group does, a connection is locked for everybody else.
        hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")

        def connect(is_master):
            return dist.PrefixStore(f"job/{attempt}", dist.TCPStore(
                os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=is_master,
                timeout=timedelta(seconds=hang_limit)))

        waits, Me.store = connect(is_master=rank == 0 and not hosted), connect(is_master=False)
        if rank > 0:
            sys.stdout = open(os.devnull, "w")
    if hang_limit:
        Me.watcher = threading.Thread(target=watch, args=(hang_limit,), daemon=True)
        Me.watcher.start()
    if cuda:
        torch.cuda.set_device(device)
    # Waiting for a slower rank is no error, however long: the watcher tells it from a hang.
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", store=dist.PrefixStore("group", waits), rank=rank,
                            world_size=world, timeout=timedelta(days=1))


def run(main, *args, hang_limit=540.0):
    """main(*args) as a job: every stage's last line. What ends one rank ends all, and is said once."""
    if hang_limit < 4:
        refuse(f"error: --hang_limit={hang_limit:g}: it must be at least 4 seconds, or every breath looks like a hang")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    try:
        start(hang_limit)
        main(*args)
        finish()
    except BaseException as error:
        report(error)
    if world > 1:
        leave(0, 0)  # gloo's threads and the interpreter's end race, and now and then a run that went well ends in an abort


def finish():
    """All ranks are through: from here on none is missed."""
    if Me.watcher and not Me.done.is_set():
        barrier()
        Me.done.set()
        Me.watcher.join()  # a thread that is busy in the store when the interpreter ends would crash it
        beat()
        faulthandler.dump_traceback_later(60, exit=True)  # what is left to do takes seconds


def refuse(text):
    """Exit before the job has begun, for a reason that every rank of this machine finds: the first one says it."""
    if local_rank > 0:
        time.sleep(2)  # or torchrun would end it before
        sys.exit(1)
    sys.exit(text)


def on_signal(number, _):
    if Me.patient and not (Me.stop and number == signal.SIGINT):  # a cluster and torchrun may both send SIGTERM
        Me.stop = Me.stop or number
    else:
        raise Stopped(number)


def report(error):
    """The end of a main thread that raised."""
    if isinstance(error, SystemExit) and not error.code:
        return
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    foreseen = isinstance(error, SystemExit) and isinstance(error.code, str)
    try:
        for _ in range(30 if Me.store and world > 1 and not foreseen else 0):
            culprit = find_dead(read_beats())  # did it only raise because another rank did, or died? Give that time to show.
            if culprit is not None:
                end(culprit, died(culprit))
            if Me.store.check(["verdict"]):
                follow()
            time.sleep(0.1)
    except RuntimeError:
        end(None, LOST)
    end(rank, describe(error), 128 + error.code if isinstance(error, Stopped) else 1)


def describe(error):
    """What went wrong: in one line, or, where nobody foresaw it, with the traceback."""
    text = " ".join(str(error).split())
    here = (f"rank {rank}, " if world > 1 else "") + Me.where
    wanted = re.search(r"[Tt]ried to allocate ([\d.]+ \w+)", text)
    if isinstance(error, Stopped):
        return error.text
    if isinstance(error, SystemExit):
        return str(error.code)
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or wanted or "out of memory" in text:
        kind, state = "host", ""
        if cuda and "CPU" not in text:
            kind, state = "GPU", "; {:.1f} of {:.1f} GiB are free".format(*(x / 2**30 for x in torch.cuda.mem_get_info()))
        return (f"error: {here}: out of {kind} memory{f', {wanted[1]} more were asked for' if wanted else ''}{state}. "
                f"{advice()}")
    # torch.save and safetensors raise errors of their own over the system's.
    full = {errno.ENOSPC, errno.EDQUOT}.intersection(getattr(e, "errno", None) for e in (error, error.__context__))
    if full or "No space left" in text:
        file = getattr(error, "filename", None) or "a file"
        return f"error: {here}: no space left for {file}. What was there is intact: make room. {ONWARD}"
    return "".join(traceback.format_exception(error)) + f"error: {here}: {type(error).__name__}: {text}"


def advice():
    """What to lower when memory runs out in this phase."""
    if Me.where.startswith("KL"):
        return "Lower --micro_batch_tokens"
    if Me.where.endswith((", reference", ", train")):
        return "Lower --micro_batch_tokens, or set --checkpoint_activations=True, then --offload_optimizer=True"
    if any(word in Me.where for word in ("engine", "generate", "sync", "evaluat", "sampling")):
        return "Lower --engine_memory (stage 1 and evaluate.py: --gpu_memory), or spread an engine over GPUs with --tp=2"
    return "Use more GPUs, or --offload_optimizer=True and --offload_reference=True; memory.py shows what fits where"


# ---- the watcher -------------------------------------------------------------------------------------------------

def beat():
    state = {"pid": os.getpid(), "machine": machine, "time": time.monotonic(), "where": Me.where,
             "progress": [Me.phases, Me.ticks], "done": Me.done.is_set()}
    Me.store.set(f"beat/{rank}", json.dumps(state))


def read_beats():
    """{rank: its last beat} of the ranks that have begun. Raises RuntimeError if the store is gone."""
    begun = [r for r in range(world) if r in Me.last or Me.store.check([f"beat/{r}"])]
    Me.last = dict(zip(begun, map(json.loads, Me.store.multi_get([f"beat/{r}" for r in begun]))))
    return Me.last


def watch(hang_limit):
    """The watcher's thread. Whatever ends it ends the job: nobody runs unwatched."""
    try:
        keep_watch(hang_limit)
    except Exception as error:
        end(rank, describe(error))


def keep_watch(hang_limit):
    last, beaten = {}, {}  # beats, and when each last changed
    begun = moved = time.monotonic()  # moved: when any main thread last got on
    while not Me.done.is_set():
        # For when the store doesn't answer, or the interpreter doesn't: a timer outside of both ends the process.
        faulthandler.dump_traceback_later(2 * hang_limit + 60, exit=True)
        try:
            beat()
            if Me.stop and not Me.store.check(["stop"]):
                Me.store.set("stop", str(Me.stop))
            elif Me.patient and not Me.stop and Me.store.check(["stop"]):
                Me.stop = int(Me.store.get("stop"))
            if Me.store.check(["verdict"]):
                follow()
            beats = read_beats()
            culprit = find_dead(beats)
        except RuntimeError:
            if not Me.done.is_set():
                end(None, LOST)
            return
        now = time.monotonic()
        beaten.update({r: now for r in beats if r not in last or beats[r]["time"] != last[r]["time"]})
        if any(r not in last or beats[r]["progress"] != last[r]["progress"] for r in beats):
            moved = now
        last = beats
        if culprit is not None:
            end(culprit, died(culprit))
        absent = [r for r in range(world) if r not in beats]
        if absent and now - begun > hang_limit:
            end(None, f"error: rank {absent[0]} has not begun, {now - begun:.0f} s after rank {rank}: see what torchrun says "
                      "on its machine")
        for r in beats:
            if now - beaten[r] > hang_limit and not beats[r]["done"]:
                end(r, f"error: {name_of(r, beats)} has given no sign of life for {now - beaten[r]:.0f} s: stopped, or its "
                    f"machine is gone. {ONWARD}")
        set_up = any(b["progress"][0] == 0 for b in beats.values())  # of some rank: the others may wait for it
        if now - moved > hang_limit * (SET_UP if set_up else 1):
            silent = [r for r in beats if now - beaten[r] > hang_limit / 2]
            behind = silent or [r for r in beats if beats[r]["progress"] == min(b["progress"] for b in beats.values())]
            end(behind[0] if silent else None, f"error: no process has got on for {now - moved:.0f} s (--hang_limit); furthest "
                f"behind: {', '.join(name_of(r, beats) for r in behind[:4])}{', ...' * (len(behind) > 4)}. {ONWARD}")
        Me.done.wait(1.0)


def name_of(r, beats):
    return f"rank {r} (process {beats[r]['pid']} on {beats[r]['machine']}; {beats[r]['where']})"


def died(r):
    return (f"error: {name_of(r, Me.last)} was killed or crashed; if nobody killed it, its machine ran out of memory. "
            f"{ONWARD}")


def find_dead(beats):
    """A rank whose process on this machine is gone though it was not done, or None."""
    for r, b in beats.items():
        if b["machine"] == machine and not b["done"]:
            try:
                with open(f"/proc/{b['pid']}/stat") as f:
                    gone = f.read().rsplit(")", 1)[1].split()[0] in "ZX"
            except (FileNotFoundError, ProcessLookupError):
                gone = True
            if gone and not read_beats()[r]["done"]:
                return r


def end(culprit, text, status=1):
    """Leave the verdict, print it if it is the first, and end this process. culprit: the rank that is to blame."""
    if not Me.ending.acquire(blocking=False):
        time.sleep(60)  # this process's other thread is at it
    mine, wait = json.dumps([rank, culprit, status, text]), 0
    try:
        first = Me.store is None or Me.store.compare_set("verdict", "", mine).decode() == mine
        if not first:
            Me.ending.release()
            follow()
        wait = 2.5 if world > 1 else 0  # until the others have seen it: with this process torchrun may take the store away
    except RuntimeError:  # the store is gone already: each machine says it once
        first = local_rank == 0
    if first:
        with suppress(OSError):  # the disk that is full may be the log's
            print(text, file=sys.__stderr__, flush=True)
    if culprit not in (None, rank):
        kill_stuck(culprit)
    leave(status, wait)


def follow():
    """End this process by the verdict of another, and after it: torchrun calls the first to end the root cause."""
    if not Me.ending.acquire(blocking=False):
        time.sleep(60)
    status = 1
    try:
        author, culprit, status, _ = json.loads(Me.store.get("verdict"))
        if culprit != author:
            kill_stuck(culprit)
    except RuntimeError:
        pass  # the job is over already
    leave(status, 4)


def kill_stuck(r):
    """A stopped process can't end itself, and torchrun gives it half a minute."""
    b = Me.last.get(r)
    if b and b["machine"] == machine:
        with suppress(ProcessLookupError):
            os.kill(b["pid"], signal.SIGKILL)


def leave(status, seconds):
    """End this process without ceremony: an orderly end would wait for the collective that the main thread is in."""
    time.sleep(seconds)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(status)
