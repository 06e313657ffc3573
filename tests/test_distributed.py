"""Many processes: equal numbers in every layout, runs that continue, and how a job ends."""
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time

from lib.values import load_values
from model import Qwen2

import pytest
import torch
from conftest import REPO, cpu_only, metrics_of, run, what_counts
from kill import SMALL, kill_and_compare, output_of, ranks, steps_of, torchrun, wait_for_ranks

pytestmark = [cpu_only, pytest.mark.slow]
ROUNDED = ("loss", "kl", "grad_norm", "entropy", "reward", "accuracy", "accuracy_sampled")


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory):
    """The folder of an undisturbed run of six steps in one process."""
    folder = tmp_path_factory.mktemp("whole")
    shutil.copytree(base / "data", folder / "data")
    shutil.copytree(base / "out", folder / "out")
    run("train_apo.py", *SMALL, "--max_steps=6", cwd=folder)
    return folder / "out/arithmetic"


def new_out(folder, name):
    (folder / "out" / name).mkdir()
    shutil.copy(folder / "out/arithmetic/values.pt", folder / "out" / name)
    return folder / "out" / name


def finished(launcher):
    """The output of a torchrun that must end well."""
    output = output_of(launcher)
    assert launcher.returncode == 0, output[-5000:]
    return output


def nothing_left(*pids):
    wait_for_ranks(pids)
    assert not [name for name in os.listdir("/dev/shm") if "cpushm" in name or "psm_" in name]


# ---- equal numbers -------------------------------------------------------------------------------

def test_layouts_agree(whole, workdir):
    """One process; two that share an engine and offload all they can; two nodes of one process with
    a replica each; a checkpoint of two continued by one: the same samples, and losses within
    rounding, over six steps."""
    small = (*SMALL, "--max_steps=6")
    new_out(workdir, "tp")
    run("train_apo.py", *small, "--out=out/tp", "--tp=2", "--offload_optimizer=True",
        "--offload_reference=True", cwd=workdir, processes=2)
    new_out(workdir, "nodes")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    nodes = [subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--node_rank={n}",
         "--master_addr=127.0.0.1", f"--master_port={port}", "--nproc_per_node=1",
         str(REPO / "train_apo.py"), *small, "--out=out/nodes", "--replicate_nodes=True"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"})  # as torchrun sets for two on one machine
        for n in (0, 1)]
    for node in nodes:
        finished(node)
    shutil.copytree("out/tp", "out/fewer")
    shutil.rmtree("out/fewer/ckpt/step-000006")
    shutil.rmtree("out/fewer/model")
    done = run("train_apo.py", *small, "--out=out/fewer", cwd=workdir)
    assert "continuing from out/fewer/ckpt/step-000004" in done.stdout
    for name in ("tp", "nodes", "fewer"):
        for a, b in zip(metrics_of(whole), metrics_of(f"out/{name}"), strict=True):
            assert a["tokens"] == b["tokens"] and set(a) == set(b)
            for key in set(a).intersection(ROUNDED):
                assert a[key] == pytest.approx(b[key], rel=2e-5, abs=2e-6), (name, a["step"], key)


def test_stage_1_and_evaluation_on_two_processes(base, workdir):
    """The same values, bit for bit, as one process, also when one of the two was killed before; the
    same results of an evaluation."""
    launcher = torchrun("estimate_value.py", "--max_prompts=256", "--out=out/two", cwd=workdir)
    parts = [workdir / f"out/two/responses.part.{i}.jsonl" for i in (0, 1)]
    deadline = time.time() + 120
    while time.time() < deadline and not all(
            p.exists() and p.read_bytes().count(b"\n") > 20 for p in parts):
        time.sleep(0.01)
    os.kill(ranks(launcher)[1], signal.SIGKILL)
    output_of(launcher)
    kept = sum(p.read_bytes().count(b"\n") - 1 for p in parts)
    output = finished(torchrun("estimate_value.py", "--max_prompts=256", "--out=out/two",
                               cwd=workdir))
    assert output.count("wrote out/two/values.pt") == 1 and kept > 40
    a, b = (load_values(folder / "values.pt")
            for folder in (workdir / "out/two", base / "out/arithmetic"))
    assert a["ids"] == b["ids"]
    assert all(torch.equal(a[k], b[k]) for k in ("rewards", "lengths", "finished", "v_star"))
    assert not any(p.exists() for p in parts)

    shutil.copytree("data/arithmetic/model", "copy")
    other = Qwen2.from_pretrained("copy")
    with torch.no_grad():
        other.model.layers[0].mlp.down_proj.weight.mul_(2)
    shutil.copytree("copy", "other")
    other.save_pretrained("other")
    arguments = ("--max_prompts=33", "--samples_per_prompt=3", "--kl_to=other")
    run("evaluate.py", "--model=data/arithmetic/model", *arguments, cwd=workdir)
    run("evaluate.py", "--model=copy", *arguments, "--tp=2", cwd=workdir, processes=2)
    one, two = (json.loads((workdir / path / "eval.json").read_text())["arithmetic"]
                for path in ("data/arithmetic/model", "copy"))
    kl = [results.pop("kl_per_response")["value"] for results in (one, two)]
    assert 0 < kl[0] == pytest.approx(kl[1], rel=1e-3)  # micro-batches differ, and so does rounding
    assert one.pop("kl_per_token") == pytest.approx(two.pop("kl_per_token"), rel=1e-3)
    assert one == two


@pytest.mark.parametrize("baseline, size", [("grpo", 8), ("rebel", 16), ("ppo", 32)])
def test_baselines_on_two_processes(baseline, size, workdir):
    """They give the losses of one process, each with an engine of its own."""
    small = (f"--batch_size={size}", f"--mini_batch_size={size // 2}", "--eval_prompts=16",
             "--eval_every=2", "--max_steps=4")
    run(f"baselines.{baseline}", *small, cwd=workdir)
    run(f"baselines.{baseline}", *small, "--out=out/two", cwd=workdir, processes=2)
    for a, b in zip(metrics_of(f"out/arithmetic_{baseline}"), metrics_of("out/two"), strict=True):
        assert a["tokens"] == b["tokens"]
        for key in set(a).intersection(ROUNDED):
            assert a[key] == pytest.approx(b[key], rel=2e-4, abs=2e-5), (a["step"], key)


# ---- to continue ---------------------------------------------------------------------------------

def test_killed_at_random_moments(workdir):
    """`python tests/kill.py` does the same with 20 kills."""
    assert kill_and_compare(workdir, kills=3, seed=1, steps=16) >= 2


def test_sigterm_saves_the_step(whole, workdir):
    """In one process, between two checkpoints: what is done is saved, and continues as if nothing
    had happened."""
    out = new_out(workdir, "stopped")
    small = (*SMALL, "--max_steps=6", "--save_every=100", "--out=out/stopped")
    process = subprocess.Popen([sys.executable, str(REPO / "train_apo.py"), *small], text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    while len(steps_of(out)) < 3 and process.poll() is None:
        time.sleep(0.01)
    process.terminate()
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 128 + signal.SIGTERM and "Traceback" not in output
    assert output.rstrip().endswith("which are saved: run the same command again to continue")
    done = run("train_apo.py", *small, cwd=workdir)
    assert "continuing from out/stopped/ckpt/step-00000" in done.stdout
    assert what_counts(out) == what_counts(whole)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small file system")
def test_full_disk(whole, workdir):
    """One line that says so; what was saved before is intact, and with more room the run continues
    to the same metrics. Stage 1 says it, too."""
    out = new_out(workdir, "small")
    size = sum(p.stat().st_size for p in (whole / "ckpt/step-000006").iterdir())
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={int(1.6 * size)}", "none",
                              str(out)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no permission to mount")
    try:
        shutil.copy("out/arithmetic/values.pt", out)
        small = (*SMALL, "--max_steps=6", "--out=out/small")
        done = run("train_apo.py", *small, cwd=workdir, check=False)
        assert done.returncode == 1 and "Traceback" not in done.stdout
        line = done.stdout.strip().splitlines()[-1]
        assert line.startswith("error: out/small/ckpt/step-000004 could not be written: it takes ")
        assert "step-000002 is intact: make room, and the same command continues from it" in line
        subprocess.run(["mount", "-o", "remount,size=60m", out], check=True)
        done = run("train_apo.py", *small, cwd=workdir)
        assert "continuing from out/small/ckpt/step-000002" in done.stdout
        assert what_counts(out) == what_counts(whole)

        for name in os.listdir(out):
            path = out / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        subprocess.run(["mount", "-o", "remount,size=100k", out], check=True)
        done = run("estimate_value.py", "--max_prompts=256", "--out=out/small", cwd=workdir,
                   check=False)
        assert done.returncode == 1 and "Traceback" not in done.stdout
        line = done.stdout.strip().splitlines()[-1]
        assert line.startswith("error: sampling: no space left on the disk")
        assert line.endswith("make room and run the same command again to continue")
    finally:
        subprocess.run(["umount", out], check=True)


# ---- how a job ends ------------------------------------------------------------------------------

JOB = """
    import os, signal, sys, time

    from lib.distributed import barrier, rank, run_stage, set_phase, stop_requested, world_size

    import torch

    def main(what):
        set_phase("the work")
        barrier()
        print("at work", flush=True)
        if what == "foreseen":
            sys.exit("error: all ranks find this")
        if what == "steps":
            for step in range(100):
                if stop_requested():
                    raise KeyboardInterrupt(f"stopped after {step} steps")
                print("step", flush=True)
                time.sleep(0.5)
        if rank == world_size - 1:
            if what == "raise":
                raise KeyError("no such token")
            if what == "allocate":
                torch.empty(1 << 50, dtype=torch.uint8)
            if what in ("SIGKILL", "SIGSTOP"):
                os.kill(os.getpid(), getattr(signal, what))
            while what == "loop":
                time.sleep(0.1)
        barrier()
        print("well done")

    run_stage(main, sys.argv[1], timeout_minutes=0.1)
"""


@pytest.fixture
def job(tmp_path):
    path = tmp_path / "job.py"
    path.write_text(textwrap.dedent(JOB))
    return str(path)


@pytest.mark.parametrize("what, processes, said", [
    ("nothing", 0, "well done"), ("nothing", 2, "well done"),
    ("foreseen", 0, "error: all ranks find this"), ("foreseen", 2, "error: all ranks find this"),
    ("raise", 0, "KeyError: 'no such token'"), ("raise", 2, "rank      : 1"),
    ("allocate", 0, "error: the work: out of host memory, 1125899906842624 bytes more"),
    ("allocate", 2, "error: rank 1, the work: out of host memory, 1125899906842624 bytes"),
])
def test_how_a_job_ends(what, processes, said, job, tmp_path):
    """At once, with one line for what can be foreseen, and torchrun's report with the rank for the
    rest; no process is left."""
    begin = time.time()
    done = run(job, what, cwd=tmp_path, check=False, processes=processes)
    assert time.time() - begin < 35  # to start takes a while
    assert (done.returncode == 0) == (what == "nothing")
    assert said in done.stdout
    if said.startswith("error"):
        assert done.stdout.count("error: ") == 1
        assert "job.py\", line" not in done.stdout  # no traceback of ours
    if what == "raise" and processes == 2:
        cause = done.stdout[done.stdout.index("Root Cause"):]
        assert "rank      : 1" in cause and "KeyError: 'no such token'" in cause
    assert not subprocess.run(["pgrep", "-f", job], capture_output=True, text=True).stdout


def test_how_a_job_that_waits_ends(job, workdir):
    """For a rank that was killed, that is stopped, or that does something else: within the timeout
    (here 6 s) and the 40 s that torchrun takes. The same for a training run whose ranks share an
    engine: torchrun reports the rank that was killed. All five jobs run at the same time."""
    out = new_out(workdir, "x")
    training = torchrun("train_apo.py", *SMALL, "--max_steps=1000", "--eval_every=1000",
                        "--out=out/x", "--tp=2", cwd=workdir)
    while len(steps_of(out)) < 3:
        assert training.poll() is None, output_of(training)
        time.sleep(0.01)
    pids, begin = ranks(training), time.time()
    os.kill(pids[1], signal.SIGKILL)
    said = {("SIGKILL", 2): "Signal 9 (SIGKILL)", ("SIGSTOP", 2): "Timed out waiting 6000ms",
            ("loop", 0): "in main", ("loop", 2): "Timed out waiting 6000ms"}
    launchers = [torchrun(job, what, processes=n, cwd=workdir) for what, n in said]
    output = output_of(training)
    assert time.time() - begin < 40
    cause = output[output.index("Root Cause"):]
    assert "rank      : 1" in cause and "SIGKILL" in cause
    for launcher, line in zip(launchers, said.values(), strict=True):
        assert line in output_of(launcher) and launcher.returncode != 0
    assert time.time() - begin < 75  # to start takes a while
    assert not subprocess.run(["pgrep", "-f", job], capture_output=True, text=True).stdout
    nothing_left(*pids.values())


@pytest.mark.parametrize("processes, number", [
    (0, signal.SIGTERM), (0, signal.SIGINT), (2, signal.SIGTERM), (2, signal.SIGINT),
    (2, signal.SIGKILL)])
def test_a_request_to_stop(processes, number, job, tmp_path):
    """SIGTERM, Ctrl-C, or torchrun is killed: the step ends, and all ranks stop after the same."""
    process = torchrun(job, "steps", processes=processes, cwd=tmp_path)
    while process.stdout.readline() != "step\n":
        assert process.poll() is None
    pids = ranks(process)
    process.send_signal(number)
    output = process.communicate(timeout=40)[0]
    assert output.count("stopped after ") == 1
    if not processes:
        assert process.returncode == 128 + number
    nothing_left(*pids.values())


def test_ctrl_c_twice_interrupts(job, tmp_path):
    text = (tmp_path / "job.py").read_text().replace("time.sleep(0.5)", "time.sleep(60)")
    (tmp_path / "job.py").write_text(text)
    process = torchrun(job, "steps", processes=0, cwd=tmp_path)
    while process.stdout.readline() != "step\n":
        assert process.poll() is None
    for _ in range(2):
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=20)[0] == "stopped by SIGINT\n"
