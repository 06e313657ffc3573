"""Many processes as one job: the same numbers in every layout, nothing lost when it is killed, one message when it fails."""
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time

import pytest
import torch
from conftest import REPO, metrics_of, own_words, run
from kill import SMALL, kill_and_compare, ranks, steps_of, torchrun, what_counts
from torch.distributed.checkpoint.api import CheckpointException

import checkpoint
import common
import estimate_value
import job
import train_apo
from model import Qwen2, deal

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="several processes can't share a GPU, but CPU cores")
ROUNDING = ("loss", "kl", "grad_norm", "entropy", "reward", "accuracy", "accuracy_sampled")


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory):
    """The folder of a run of six steps in one process that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    shutil.copytree(base / "data", folder / "data")
    shutil.copytree(base / "out", folder / "out")
    run("train_apo.py", *SMALL, "--max_steps=6", cwd=folder)
    return folder / "out/arithmetic"


@pytest.fixture
def folder(base, tmp_path):
    """A current folder with data, base model and a finished stage 1."""
    shutil.copytree(base / "data", tmp_path / "data")
    shutil.copytree(base / "out", tmp_path / "out")
    return tmp_path


def run_folder(folder, name):
    (folder / "out" / name).mkdir()
    shutil.copy(folder / "out/arithmetic/values.pt", folder / "out" / name)
    return folder / "out" / name


def finished(launcher, timeout=240):
    """The output of a torchrun that should end well."""
    output = launcher.communicate(timeout=timeout)[0]
    assert launcher.returncode == 0, output[-5000:]
    return output


def nothing_left(*pids):
    """No process and no shared memory of a job."""
    def running(pid):
        try:
            with open(f"/proc/{pid}/stat") as f:
                return f.read().rsplit(")", 1)[1].split()[0] not in "ZX"
        except FileNotFoundError:
            return False
    deadline = time.time() + 5
    while time.time() < deadline and any(map(running, pids)):
        time.sleep(0.1)
    assert not any(map(running, pids)) and not [name for name in os.listdir("/dev/shm") if "cpushm" in name or "psm_" in name]


# ---- the same numbers --------------------------------------------------------------------------------------------

def test_layouts_agree(whole, folder):
    """One process, two, two that share an engine (and offload all they can), two nodes of one process with a replica each: the
    same samples, and losses within rounding, over six steps. Micro-batches differ between one and two. A checkpoint of two
    processes goes on in one."""
    small = (*SMALL, "--max_steps=6")
    layouts = {"two": [], "tp": ["--tp=2", "--offload_optimizer=True", "--offload_reference=True"]}
    for name, extra in layouts.items():
        run_folder(folder, name)
        finished(torchrun("train_apo.py", *small, f"--out=out/{name}", *extra, cwd=folder))
    run_folder(folder, "nodes")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    nodes = [subprocess.Popen([sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--node_rank={n}",
                               "--master_addr=127.0.0.1", f"--master_port={port}", "--nproc_per_node=1",
                               str(REPO / "train_apo.py"), *small, "--out=out/nodes", "--replicate_nodes=True"],
                              cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              env={**os.environ, "OMP_NUM_THREADS": "1"})  # as torchrun does for two on one machine
             for n in (0, 1)]
    for node in nodes:
        finished(node)
    shutil.copytree(folder / "out/two", folder / "out/fewer")
    shutil.rmtree(folder / "out/fewer/ckpt/step-000006")
    shutil.rmtree(folder / "out/fewer/model")
    done = run("train_apo.py", *small, "--out=out/fewer", cwd=folder)
    assert "going on from out/fewer/ckpt/step-000004" in done.stdout
    for name in (*layouts, "nodes", "fewer"):
        for a, b in zip(metrics_of(whole), metrics_of(folder / "out" / name), strict=True):
            assert a["tokens"] == b["tokens"] and set(a) == set(b)
            for key in set(a).intersection(ROUNDING):
                assert a[key] == pytest.approx(b[key], rel=2e-5, abs=2e-6), (name, a["step"], key)


def test_stage_1_and_evaluation_on_two_processes(base, folder):
    """The same values, bit for bit, as one process gave, also when one of the two was killed on the way; the same results."""
    launcher = torchrun("estimate_value.py", "--max_prompts=256", "--out=out/two", cwd=folder)
    parts = [folder / f"out/two/responses.part.{i}.jsonl" for i in (0, 1)]
    deadline = time.time() + 120
    while time.time() < deadline and not all(p.exists() and p.read_bytes().count(b"\n") > 20 for p in parts):
        time.sleep(0.01)
    os.kill(ranks(launcher)[1], signal.SIGKILL)
    output = launcher.communicate(timeout=60)[0]
    assert launcher.returncode and "error: rank 1 (process" in output
    kept = sum(p.read_bytes().count(b"\n") - 1 for p in parts)
    output = finished(torchrun("estimate_value.py", "--max_prompts=256", "--out=out/two", cwd=folder))
    assert output.count("wrote out/two/values.pt") == 1 and kept > 40
    a, b = (estimate_value.load_values(p) for p in (folder / "out/two/values.pt", base / "out/arithmetic/values.pt"))
    assert a["ids"] == b["ids"] and all(torch.equal(a[k], b[k]) for k in ("rewards", "lengths", "finished", "v_star"))
    assert not any(p.exists() for p in parts)

    shutil.copytree(folder / "data/arithmetic/model", folder / "copy")
    other = Qwen2.from_pretrained(folder / "copy")
    with torch.no_grad():
        other.model.layers[0].mlp.down_proj.weight.mul_(2)
    shutil.copytree(folder / "copy", folder / "other")
    other.save_pretrained(folder / "other")
    evaluate = ("--max_prompts=33", "--samples_per_prompt=3", f"--kl_to={folder}/other")
    run("evaluate.py", "--model=data/arithmetic/model", *evaluate, cwd=folder)
    finished(torchrun("evaluate.py", "--model=copy", *evaluate, "--tp=2", cwd=folder))
    one, two = (json.load(open(folder / p / "eval.json"))["arithmetic"] for p in ("data/arithmetic/model", "copy"))
    kl = [results.pop("kl_per_response") for results in (one, two)]
    assert 0 < kl[0]["value"] == pytest.approx(kl[1]["value"], rel=1e-3)  # micro-batches differ, so does rounding
    assert one.pop("kl_per_token") == pytest.approx(two.pop("kl_per_token"), rel=1e-3) and one == two


@pytest.mark.parametrize("limit", [64, 700])
def test_micro_batches_are_dealt_evenly(limit):
    """Every sequence once; each rank as many micro-batches as the others, within the limit, and nearly as many tokens."""
    g = torch.Generator().manual_seed(limit)
    lengths = torch.randint(1, 129, (256,), generator=g).tolist()
    for ranks_ in (1, 2, 4, 8):
        dealt = deal(range(128, 256), lengths, limit, ranks_)
        assert all(len(groups) == ranks_ for groups in dealt)
        every = [group for groups in dealt for group in groups]
        assert sorted(i for group in every for i in group) == list(range(128, 256))
        tokens = [[sum(lengths[i] for i in group) for group in groups] for groups in dealt]
        assert all(t <= limit or len(group) == 1 for t, group in zip(sum(tokens, []), every))
        if limit == 700:  # what the slowest rank of each micro-batch takes, against an even share
            assert sum(max(t) for t in tokens) * ranks_ <= 1.05 * sum(lengths[128:])


# ---- going on ----------------------------------------------------------------------------------------------------

def test_killed_at_random_moments(folder):
    """SIGKILL to a rank, to all, SIGTERM to torchrun: the run goes on each time, and ends with the metrics and the weights of
    one that was left alone, bit for bit. `python tests/kill.py` does it 20 times."""
    assert kill_and_compare(folder, kills=3, seed=1, steps=16) >= 2


def test_sigterm_saves_the_step(whole, folder):
    """Also in one process, between two checkpoints: what is done is saved, and goes on as if nothing had happened."""
    out, small = run_folder(folder, "stopped"), (*SMALL, "--max_steps=6", "--save_every=100")
    process = subprocess.Popen([sys.executable, str(REPO / "train_apo.py"), *small, "--out=out/stopped"], cwd=folder,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while len(steps_of(out)) < 3 and process.poll() is None:
        time.sleep(0.01)
    process.terminate()
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 128 + signal.SIGTERM and "Traceback" not in output
    assert output.rstrip().endswith("steps, which are saved: the same command goes on")
    done = run("train_apo.py", *small, "--out=out/stopped", cwd=folder)
    assert "going on from out/stopped/ckpt/step-00000" in done.stdout and what_counts(out) == what_counts(whole)


def test_damaged_checkpoints(whole, tmp_path, capsys):
    """A truncated file, a missing one: the checkpoint before is taken, and it is said. If none is whole, nothing is lost."""
    out = tmp_path / "x"
    shutil.copytree(whole, out)
    constants = json.load(open(out / "ckpt/step-000006/checkpoint.json"))["constants"]
    assert checkpoint.newest(str(out), constants, ()) == (str(out / "ckpt/step-000006"), 6)
    with pytest.raises(ValueError, match="step-000006 was trained with lr = 0.0004, this run has 1.0; choose another --out"):
        checkpoint.newest(str(out), {**constants, "lr": 1.0}, ())
    assert checkpoint.newest(str(out), {**constants, "lr": 1.0}, ("lr",))[1] == 6
    file = out / "ckpt/step-000006/__0_0.distcp"
    os.truncate(file, file.stat().st_size - 1)
    assert checkpoint.newest(str(out), constants, ()) == (str(out / "ckpt/step-000004"), 4)
    said = capsys.readouterr().out
    assert "step-000006 is damaged (__0_0.distcp has" in said and said.count("\n") == 1
    os.remove(out / "ckpt/step-000004/.metadata")
    with pytest.raises(ValueError, match="step-000004 is damaged .*and no other is left; begin anew with --resume=False"):
        checkpoint.newest(str(out), constants, ())
    assert sorted(os.listdir(out / "ckpt")) == ["step-000004", "step-000006"]


def small_policy(seed):
    """A policy and its optimizer after one update."""
    torch.manual_seed(seed)
    policy = torch.nn.Linear(5, 3)
    optimizer = torch.optim.AdamW(policy.parameters())
    policy(torch.ones(5)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    return policy, optimizer


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp"])
def test_damage_that_sizes_do_not_show(name, tmp_path, caplog):
    """Loading gives back what was saved; from a file of zeros it fails in one line that says what to do."""
    saved, other = small_policy(0), small_policy(1)
    checkpoint.save(str(tmp_path), 1, *saved, {}, 1)
    path, _ = checkpoint.newest(str(tmp_path), {}, ())
    checkpoint.load(path, *other)
    assert all(torch.equal(a, b) for a, b in zip(saved[0].parameters(), other[0].parameters()))
    for a, b in zip(saved[1].state.values(), other[1].state.values(), strict=True):
        assert all(torch.equal(a[k], b[k]) for k in ("step", "exp_avg", "exp_avg_sq"))
    file = tmp_path / "ckpt/step-000001" / name
    file.write_bytes(bytes(file.stat().st_size))
    assert checkpoint.newest(str(tmp_path), {}, ()) == (path, 1)
    with pytest.raises(ValueError, match="step-000001 can't be read .*; move it away, and the same command goes on from") as e:
        checkpoint.load(path, *other)
    assert "\n" not in str(e.value) and not [record for record in caplog.records if record.name == "root"]


def test_a_request_to_stop_is_no_damage(tmp_path, monkeypatch):
    """torch.distributed.checkpoint wraps a signal's exception like any other: it must come out as what it is."""
    def interrupted(*_, **__):
        raise CheckpointException("", {0: (job.Stopped(signal.SIGTERM), None)})
    monkeypatch.setattr(checkpoint.dcp, "load", interrupted)
    monkeypatch.setattr(checkpoint.dcp, "save", interrupted)
    with pytest.raises(job.Stopped, match="15"):
        checkpoint.load("x", *small_policy(0))
    with pytest.raises(job.Stopped, match="15"):
        checkpoint.save(str(tmp_path), 1, *small_policy(0), {}, 1)
    assert os.listdir(tmp_path / "ckpt") == []


def test_thinning_spares_what_is_whole(tmp_path, monkeypatch):
    """A damaged checkpoint of a later step must not crowd out the good ones that are saved after it was skipped."""
    for name in ("step-000002", "step-000004", "step-000008", "step-000010"):
        os.makedirs(tmp_path / "ckpt" / name)
    for keep, left in ((4, ["2", "4", "6"]), (2, ["4", "6"]), (1, ["6"])):
        checkpoint.save(str(tmp_path), 6, *small_policy(0), {}, keep)
        assert sorted(os.listdir(tmp_path / "ckpt")) == [f"step-00000{step}" for step in left]
    for name in ("step-000008.tmp", "step-000006.bak"):  # a killed run's, somebody's copy
        os.makedirs(tmp_path / "ckpt" / name)
    checkpoint.make_ready(str(tmp_path), anew=False)
    assert sorted(os.listdir(tmp_path / "ckpt")) == ["step-000006", "step-000006.bak"]
    checkpoint.make_ready(str(tmp_path), anew=True)
    assert os.listdir(tmp_path / "ckpt") == ["step-000006.bak"]


def test_a_folder_that_is_not_shared(tmp_path, monkeypatch):
    """Another machine's folder of the same name: noticed before training, and when the machines have different checkpoints."""
    monkeypatch.setattr(common.time, "sleep", lambda seconds: None)
    clock = iter(range(0, 1000, 25))
    monkeypatch.setattr(common.time, "time", lambda: next(clock))
    with monkeypatch.context() as m:
        m.setattr(job, "barrier", lambda: shutil.rmtree(tmp_path / "ckpt"))  # as if it had been made elsewhere
        with pytest.raises(ValueError, match="is not there on .* it must be on a file system that all share"):
            checkpoint.make_ready(str(tmp_path), anew=False)
    monkeypatch.setattr(job, "gather", lambda path: [path, "step-000002"])
    with pytest.raises(ValueError, match="not every process sees the same checkpoints"):
        checkpoint.newest(str(tmp_path), {}, ())


def test_a_wrong_constant_is_reported_once(tmp_path):
    for wrong, said in (("--lrr=1", "there is no constant 'lrr'; did you mean lr?"), ("--hang_limit=1", "4 seconds")):
        launcher = torchrun("train_apo.py", wrong, cwd=tmp_path)
        output = launcher.communicate(timeout=60)[0]
        assert launcher.returncode and output.count("error: ") == 1 and said in output
        assert "Traceback" not in own_words(output)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system takes root")
def test_full_disk(whole, folder):
    """Room for one checkpoint, not for two: one line that says how much is missing, the first one and the metrics whole. With
    more room the same command goes on and ends where an undisturbed run does. Stage 1 the same."""
    out = run_folder(folder, "small")
    values = (out / "values.pt").read_bytes()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=18m", "tmpfs", out], check=True)
    try:
        (out / "values.pt").write_bytes(values)
        stopped = run("train_apo.py", *SMALL, "--max_steps=6", "--out=out/small", cwd=folder, check=False)
        line = stopped.stdout.rstrip().splitlines()[-1]
        assert stopped.returncode == 1 and "Traceback" not in stopped.stdout
        assert line.startswith("error: out/small/ckpt/step-000004 could not be written: it takes 0.012 GB")
        assert line.endswith("out/small/ckpt/step-000002 is intact: make room, and the same command goes on")
        assert os.listdir(out / "ckpt") == ["step-000002"] and len(steps_of(out)) == 4
        subprocess.run(["mount", "-o", "remount,size=60m", out], check=True)
        done = run("train_apo.py", *SMALL, "--max_steps=6", "--out=out/small", cwd=folder)
        assert "going on from out/small/ckpt/step-000002" in done.stdout
        assert what_counts(out) == what_counts(whole)

        shutil.rmtree(out / "ckpt"), shutil.rmtree(out / "model"), os.remove(out / "values.pt")
        subprocess.run(["mount", "-o", "remount,size=64k", out], check=True)
        stopped = run("estimate_value.py", "--max_prompts=256", "--out=out/small", cwd=folder, check=False)
        line = stopped.stdout.rstrip().splitlines()[-1]
        assert stopped.returncode == 1 and "Traceback" not in stopped.stdout and line.startswith("error: ")
        assert "no space left" in line and line.endswith("The same command goes on from what was last saved.")
        subprocess.run(["mount", "-o", "remount,size=60m", out], check=True)
        done = run("estimate_value.py", "--max_prompts=256", "--out=out/small", cwd=folder)
        assert torch.equal(estimate_value.load_values(out / "values.pt")["rewards"],
                           estimate_value.load_values(whole / "values.pt")["rewards"])
    finally:
        subprocess.run(["umount", out], check=True)


# ---- stopping clearly --------------------------------------------------------------------------------------------

def at_work(folder, *extra, script="train_apo.py"):
    """A two-process run with a short limit for hangs, once it has done three steps; it never evaluates or saves, so it is
    always in a step. Returns (torchrun, its ranks' pids)."""
    out = run_folder(folder, "x")
    launcher = torchrun(script, *SMALL, "--max_steps=1000", "--eval_every=1000", "--save_every=0", "--out=out/x",
                        "--hang_limit=10", *extra, cwd=folder)
    while len(steps_of(out)) < 3 and launcher.poll() is None:
        time.sleep(0.01)
    return launcher, ranks(launcher)


@pytest.mark.parametrize("number, said", [(signal.SIGKILL, "was killed or crashed"),
                                          (signal.SIGSTOP, "has given no sign of life")])
def test_a_rank_is_gone(number, said, folder):
    """Killed, or stopped mid-step, with an engine shared by both ranks: the other names it, and everything ends."""
    launcher, pids = at_work(folder, "--tp=2")
    begin = time.time()
    os.kill(pids[1], number)
    output = launcher.communicate(timeout=60)[0]
    assert time.time() - begin < 25
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and errors[0].startswith(f"error: rank 1 (process {pids[1]} on ") and said in errors[0], output
    assert " step " in errors[0]
    nothing_left(launcher.pid, *pids.values())


def test_a_rank_raises_during_generation(folder):
    """Its traceback, then one line with the rank, the step and the phase; nothing of the other rank's broken collective."""
    (folder / "broken.py").write_text(textwrap.dedent(f"""
        import sys; sys.path.insert(0, {str(REPO)!r})
        import train_apo, rollout, job
        from common import configure
        stream = rollout.Engine.stream

        def broken(self, *args):
            if job.rank == 1 and job.Me.where.startswith("step 3, generate"):
                raise KeyError("no such token")
            return stream(self, *args)

        if __name__ == "__main__":
            rollout.Engine.stream = broken
            constants = configure(vars(train_apo))
            job.run(train_apo.main, constants, hang_limit=train_apo.hang_limit)
    """))
    begin = time.time()
    launcher, pids = at_work(folder, script=str(folder / "broken.py"))
    output = launcher.communicate(timeout=60)[0]
    assert launcher.returncode == 1 and time.time() - begin < 100
    assert "error: rank 1, step 3, generate: KeyError: 'no such token'" in own_words(output)
    assert own_words(output).count("Traceback") == 1 and output.count("error: ") == 1 and "[rank" not in output
    nothing_left(launcher.pid, *pids.values())


MINI = """
    import os, signal, sys, time
    if sys.argv[1] == "absent" and os.environ["RANK"] == "1":
        time.sleep(60)
    sys.path.insert(0, {repo!r})
    import job

    def main(what):
        job.phase("the work")
        job.barrier()
        print("at work", flush=True)
        time.sleep(1.5)
        if what == "refuse":
            sys.exit("error: both ranks say this, once")
        while job.rank == 1 and what == "hang":
            time.sleep(0.1)
        if job.rank == 1 and what == "vanish":
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "vanish":
            job.dist.new_group()  # waits in the store, as when engines and models are set up
        if job.rank == 1 and what == "allocate":
            import torch
            torch.empty(1 << 50, dtype=torch.uint8)
        job.barrier()
        if job.rank == 0:
            print("well done")

    job.run(main, sys.argv[1], hang_limit=4.0)
"""


@pytest.mark.parametrize("what, said", [
    ("nothing", "well done"), ("refuse", "error: both ranks say this, once"), ("vanish", "was killed or crashed"),
    ("absent", "error: rank 1 has not begun, "),
    ("hang", "error: no process has got on for 4 s (--hang_limit); furthest behind: rank 1 "),
    ("allocate", "error: rank 1, the work: out of host memory, 1125899906842624 bytes more were asked for. ")])
def test_a_job_of_two(what, said, tmp_path):
    """Without a model: what ends it is said once, and in seconds."""
    (tmp_path / "mini.py").write_text(textwrap.dedent(MINI.format(repo=str(REPO))))
    begin = time.time()
    launcher = torchrun(str(tmp_path / "mini.py"), what, cwd=tmp_path)
    output = launcher.communicate(timeout=60)[0]
    assert time.time() - begin < 40 and (launcher.returncode == 0) == (what == "nothing")
    assert output.count(said) == 1 and output.count("error: ") == (what != "nothing")
    assert "Traceback" not in own_words(output)
    nothing_left(launcher.pid)


def test_torchrun_itself_is_killed(tmp_path):
    """Nobody is left to end the ranks: they notice by themselves."""
    (tmp_path / "mini.py").write_text(textwrap.dedent(MINI.format(repo=str(REPO)).replace("4.0", "600.0")))
    launcher = torchrun(str(tmp_path / "mini.py"), "hang", cwd=tmp_path)
    while "at work" not in launcher.stdout.readline():
        assert launcher.poll() is None
    pids = ranks(launcher)
    launcher.kill()
    output = launcher.communicate(timeout=30)[0]
    assert output.count("error: lost the connection to the job's first node") == 1
    nothing_left(*pids.values())


def test_alone_and_stuck(tmp_path):
    """One process has a watcher, too."""
    script = MINI.format(repo=str(REPO)).replace('job.rank == 1 and what == "hang"', "True")
    (tmp_path / "mini.py").write_text(textwrap.dedent(script))
    done = subprocess.run([sys.executable, "mini.py", "hang"], cwd=tmp_path, text=True, capture_output=True, timeout=60)
    assert done.returncode == 1 and "the work)" in done.stderr
    assert done.stderr.startswith("error: no process has got on for 4 s (--hang_limit); furthest behind: rank 0 (process ")


def test_stuck_in_set_up(tmp_path):
    """It may take longer than the rest, but not for ever."""
    script = MINI.format(repo=str(REPO)).replace('job.phase("the work")', "job.SET_UP = 1; time.sleep(60)")
    (tmp_path / "mini.py").write_text(textwrap.dedent(script))
    done = subprocess.run([sys.executable, "mini.py", "hang"], cwd=tmp_path, text=True, capture_output=True, timeout=60)
    assert done.returncode == 1 and "error: no process has got on for " in done.stderr and "; set-up)" in done.stderr


def test_not_finite(monkeypatch):
    train_apo.check_finite(3, 0.5, 1.0)
    for loss, norm in ((float("nan"), 1.0), (0.5, float("inf"))):
        with pytest.raises(SystemExit, match="error: step 3: the loss is .* The weights were not updated"):
            train_apo.check_finite(3, loss, norm)


def test_warnings():
    """A collapse and cut responses are put into words; a slow start, noise and a good run are not."""
    def about(*rewards, truncated=0.0):
        return train_apo.warnings_about([{"step": i, "reward": r, "truncated": truncated} for i, r in enumerate(rewards)])
    assert about(0.3, 0.6, 0.5) == [] and about(0.0, 0.0) == [] and about(0.02, 0.0) == []
    [line] = about(0.4, 0.7, 0.1)
    assert "the policy has collapsed: reward 0.100, after 0.700 in step 1" in line and "--lr" in line
    [line] = about(0.5, truncated=0.9)
    assert "90% of the responses were cut at 32 tokens" in line and "--max_response_tokens" in line


def test_memory_runs_out():
    """The message says where, how much and what to lower."""
    job.phase("step 7, train")
    text = job.describe(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity"))
    assert text.startswith("error: step 7, train: out of host memory, 2.50 GiB more were asked for. Lower --micro_batch_tokens")
    job.phase("building the engine")
    assert "--engine_memory" in job.describe(MemoryError())
    job.phase("KL of a/b")
    assert job.describe(MemoryError()).endswith("Lower --micro_batch_tokens")
    job.phase("loading the reference")
    assert "--offload_optimizer=True" in job.describe(MemoryError())
