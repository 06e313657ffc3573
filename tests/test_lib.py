"""lib/: constants, files, data order, micro-batches, checkpoints, checks of a running step, memory.
"""
import errno
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from importlib import import_module
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import lib.checkpoint
import lib.cli
import lib.files
import lib.memory
from lib.batches import Update, pack, pack_by_tokens
from lib.checkpoint import clean_folder, find_checkpoint, load_checkpoint, save_checkpoint
from lib.data import batch_at, fingerprint_prompts, subset
from lib.distributed import foreseen, set_activity
from lib.files import atomic_dir, atomic_file
from lib.memory import choose, estimate, in_words, make_plan
from lib.run import Run, warnings_about
from model import Config, Qwen2
from train_apo import MAY_DIFFER

import pytest
import torch
from conftest import REPO, arguments, cpu_only
from torch.distributed.checkpoint.api import CheckpointException

# Checkpoints of one process.
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


# ---- constants -----------------------------------------------------------------------------------

@pytest.fixture
def configure(tmp_path, monkeypatch):
    """configure(*arguments of the command line) of a script with five constants, as a dictionary"""
    path = tmp_path / "some_stage.py"
    path.write_text("lr = 1e-6\nmax_steps = 10\nresume = True\nmodel = 'a/b'\nbeta1 = 0.5\n"
                    "LIMIT = 3\nfolder = open\nraise SystemExit\n")

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["some_stage.py", *map(str, arguments)])
        return vars(lib.cli.configure(path))
    return call


def test_constants_are_overridden_with_their_types(configure):
    """An int may stand for a float, and a number for a string. 0 is allowed, and a negative beta1;
    the script itself is not executed."""
    assert configure() == {"lr": 1e-6, "max_steps": 10, "resume": True, "model": "a/b",
                           "beta1": 0.5}
    found = configure("--lr=2", "--resume=False", "--model=12", "--max_steps=0", "--beta1=-1")
    assert found == {"lr": 2.0, "max_steps": 0, "resume": False, "model": "12", "beta1": -1.0}
    assert type(found["lr"]) is type(found["beta1"]) is float


@pytest.mark.parametrize("argument, message", [
    ("--max_stepz=3", "did you mean max_steps?"), ("--max_steps=3.5", "max_steps is of type int"),
    ("--max_steps=True", "max_steps is of type int"), ("--resume=1", "resume is of type bool"),
    ("--lr=fast", "lr is of type float"), ("--lr", "--lr=value"), ("--lr=-1e-9", "lr can't be -1e"),
    ("--max_steps=-1", "max_steps can't be -1"), ("--LIMIT=4", "no constant 'LIMIT'"),
    ("no_such_preset.py", "neither --name=value nor a preset file")])
def test_mistakes_are_named(argument, message, configure, capsys):
    """Each is one line with status 1, which repeats the argument."""
    with pytest.raises(SystemExit) as e:
        configure(argument)
    said = capsys.readouterr().err
    assert e.value.code == 1 and said.count("\n") == 1 and message in said and argument in said


def test_presets(configure, capsys, tmp_path):
    """beta2 belongs to another stage and is skipped, an unknown name is a mistake. A later preset
    overrides an earlier one, and the command line both. Nothing in a preset is executed, and what
    isn't `name = value` is an error. ~ is the home folder, in each of several paths."""
    first, second, made = tmp_path / "a.py", tmp_path / "b.py", tmp_path / "made"
    first.write_text("lr = 3e-6  # comment\nbeta2 = 0.5\nmax_steps = 7\nmodel = 'c/d'\n")
    second.write_text("max_steps = 8\nmodel = 'e/f'\n")
    assert configure("--max_steps=9", first, second) == {
        "lr": 3e-6, "resume": True, "model": "e/f", "max_steps": 9, "beta1": 0.5}
    assert configure("--model=~/a,b/~,~/c")["model"] == "{0}/a,b/~,{0}/c".format(Path.home())
    for text, message in ((f"model = open({str(made)!r}, 'w').name\n", "line 1"),
                          ("betta2 = 0.5\n", "did you mean beta2?"), ("Lr = 2e-6\n", "'Lr'"),
                          ("answer_limit = 10.0\n", "there is no constant 'answer_limit'"),
                          ("lr: float = 1e-5\n", "line 1"), ("lr = = 2\n", "line 1"),
                          ("import os\n", "line 1"), ("lr = max_steps = 1\n", "line 1")):
        first.write_text(text)
        with pytest.raises(SystemExit):
            configure(first)
        said = capsys.readouterr().err
        assert said.startswith(f"error: {first}") and message in said and said.count("\n") == 1
    assert not made.exists()


PAPER = dict(max_prompt_tokens=256, max_response_tokens=1024, dtype="bfloat16", temperature=1.0,
             samples_per_prompt=8, beta1=0.5, beta2=1e-3, batch_size=256, mini_batch_size=128,
             lr=1e-6, critic_lr=1e-5, lr_decay=False, weight_decay=0.01, grad_clip=1.0,
             entropy_coef=1e-3)
STEPS = {"gsm8k": 25 * (7473 // 256), "math": 25 * ((7498 - 339) // 256)}


@pytest.mark.parametrize("stage", ["estimate_value", "train_apo", "evaluate", "baselines.grpo",
                                   "baselines.ppo"])
def test_presets_hold_the_papers_settings(stage):
    """Every stage gets the paper's value of each constant that it has, whatever the model's size.
    Long prompts are left out of training; an evaluation leaves none out."""
    for task, size in product(STEPS, ("1.5b", "3b", "7b")):
        presets = [REPO / f"config/{name}.py" for name in (task, size) if name != "1.5b"]
        constants = vars(arguments(import_module(stage), *presets))
        expected = {**PAPER, "task": task, "max_steps": STEPS[task]}.items()
        assert constants == constants | {k: v for k, v in expected if k in constants}
        assert constants["model"].lower() == f"qwen/qwen2.5-{size}"
        assert ("max_prompt_tokens" in constants) == (stage != "evaluate")


# ---- files ---------------------------------------------------------------------------------------

def test_a_folder_has_one_writer(tmp_path):
    """As long as the process lives that writes into it, a second one stops with one line."""
    code = f"from lib.files import lock; lock({str(tmp_path / 'out')!r}); print(1, flush=True); "
    first = subprocess.Popen([sys.executable, "-c", code + "input()"], text=True,
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert first.stdout.readline() == "1\n"
    with pytest.raises(ValueError, match=f"{tmp_path}/out is in use by another job"):
        lib.files.lock(tmp_path / "out")
    first.communicate("\n")
    for _ in range(2):
        lib.files.lock(tmp_path / "out")
    with pytest.MonkeyPatch.context() as m:  # a file system without locks
        m.setattr(lib.files.fcntl, "flock", lambda *_: os.open("/nowhere", os.O_RDONLY))
        lib.files.lock(tmp_path / "new")


def test_several_jobs_change_a_file(tmp_path):
    """One after the other, so that no change is lost."""
    code = f"""
import json
from lib.files import alone, atomic_file, read_json
for i in range(100):
    with alone({str(tmp_path)!r}):
        number = read_json({str(tmp_path / "x.json")!r}).get("number", 0)
        with atomic_file({str(tmp_path / "x.json")!r}) as f:
            json.dump({{"number": number + 1}}, f)
"""
    jobs = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [job.wait() for job in jobs] == [0, 0]
    assert lib.files.read_json(tmp_path / "x.json") == {"number": 200}


def test_files_and_folders_are_whole_or_as_before(tmp_path):
    """An error in the middle of writing leaves the old content, and nothing else."""
    whole = ["model", "model/x", "new", "new/a.txt"]
    for content, left in (("half", ["new"]), ("1", whole), ("2", whole), ("half", whole)):
        with suppress(AssertionError), atomic_file(tmp_path / "new/a.txt") as f:
            f.write(content)
            assert content != "half"
        with suppress(AssertionError), atomic_dir(tmp_path / "model") as folder:
            Path(folder, "x").write_text(content)
            assert content != "half"
        assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")) == left
    assert (tmp_path / "new/a.txt").read_text() == (tmp_path / "model/x").read_text() == "2"


# ---- data order and seeds ------------------------------------------------------------------------

def test_each_epoch_visits_every_prompt_once():
    """In an order that is a function of (seed, step): a resumed run sees the same prompts. Prompts
    that don't fill a batch are left out; a batch may be all prompts."""
    def epoch(number, seed=0):
        return [i for k in range(4) for i in batch_at(4 * number + k, 110, 25, seed)]
    assert len(set(epoch(0))) == 100 and set(epoch(0)) <= set(range(110))
    assert epoch(0) == epoch(0)
    assert len({tuple(e) for e in (epoch(0), epoch(1), epoch(0, seed=1), epoch(1, seed=1))}) == 4
    assert sorted(batch_at(7, 25, 25, 0)) == list(range(25))


def test_subsets_are_nested_and_mixed():
    """The first rows of MATH's test set are all algebra: a subset must not be the first rows."""
    rows = [{"id": f"t/{i}"} for i in range(1000)]
    small, large = subset(rows, 50, 0), subset(rows, 200, 0)
    assert len(small) == 50 and [r for r in large if r in small] == small
    assert small != subset(rows, 50, 1) and all(subset(rows, n, 0) == rows for n in (0, 1000, 9999))
    assert 300 < sum(int(r["id"][2:]) for r in small) / 50 < 700


def test_the_fingerprint_is_of_all_that_decides_samples_and_grades():
    """That is a prompt's id, task, tokens and answer, and nothing else."""
    row = {"id": "a", "task": "math", "tokens": [1, 2], "answer": "3", "solution": "1 + 2 = 3"}
    seen = {fingerprint_prompts([row | changes]) for changes in (
        {}, {"id": "b"}, {"task": "gsm8k"}, {"tokens": [1, 3]}, {"answer": "4"})}
    assert len(seen | {fingerprint_prompts([row, row])}) == 6
    assert fingerprint_prompts([row | {"solution": "2 + 1", "v_star": 0.5}]) in seen


# ---- micro-batches -------------------------------------------------------------------------------

@pytest.mark.parametrize("limit", [64, 256, 700])
@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_micro_batches_are_filled_evenly(limit, ranks):
    """Every sequence once; equally many micro-batches for each rank, none over the limit unless it
    is one sequence; few of them; and the slowest rank of each has little more than an even share.
    """
    lengths = torch.randint(1, 129, (256,), generator=torch.Generator().manual_seed(0)).tolist()
    filled, total = pack_by_tokens(range(128, 256), lengths, limit, ranks), sum(lengths[128:])
    every = [group for groups in filled for group in groups]
    tokens = [[sum(lengths[i] for i in group) for group in groups] for groups in filled]
    assert {len(groups) for groups in filled} == {ranks}
    assert sorted(sum(every, [])) == list(range(128, 256))
    assert all(t <= limit or len(g) == 1 for g, t in zip(every, sum(tokens, []), strict=True))
    if ranks == 1:  # neighbours in length share a micro-batch
        in_order = [lengths[i] for group in every for i in group]
        assert in_order == sorted(in_order, reverse=True)
    if limit > 64:
        assert len(every) < 1.1 * total / limit + 1 + ranks
    if limit == 700:
        assert sum(map(max, tokens)) * ranks <= 1.05 * total


def test_a_micro_batch_may_have_exactly_the_limit():
    """With a limit of one token less, the sequences are apart."""
    assert pack_by_tokens([0, 1], [3, 5], 8) == [[[1, 0]]]
    assert pack_by_tokens([0, 1], [3, 5], 7) == [[[1]], [[0]]]


# ---- checkpoints ---------------------------------------------------------------------------------

def small_policy(seed):
    torch.manual_seed(seed)
    policy = torch.nn.Linear(5, 3)
    return policy, torch.optim.AdamW(policy.parameters(), lr=0.1)


def saved_steps(folder):
    return sorted(int(name[-6:]) for name in os.listdir(folder / "ckpt"))


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp", "checkpoint.json"])
@pytest.mark.parametrize("damage", ["zeros", "half", "missing"])
def test_a_damaged_checkpoint_is_named(name, damage, tmp_path, caplog):
    """One line says to move it away; with that done, the one before it is found. Nothing is
    deleted before."""
    for steps in (2, 4):
        save_checkpoint(str(tmp_path), steps, *small_policy(0), {"lr": 0.1}, keep=2)
    file = tmp_path / "ckpt/step-000004" / name
    content = file.read_bytes()
    file.write_bytes({"zeros": bytes(len(content))}.get(damage, content[:len(content) // 2]))
    if damage == "missing":
        file.unlink()
    with pytest.raises(ValueError, match="step-000004 is damaged .*; move it away, and") as e:
        load_checkpoint(find_checkpoint(str(tmp_path), {"lr": 0.1}, ())[0], *small_policy(1))
    assert "\n" not in str(e.value) and not [r for r in caplog.records if r.name == "root"]
    assert saved_steps(tmp_path) == [2, 4]
    shutil.move(tmp_path / "ckpt/step-000004", tmp_path / "away")
    path, steps = find_checkpoint(str(tmp_path), {"lr": 0.1}, ())
    load_checkpoint(path, *small_policy(1))
    assert steps == 2


def test_old_checkpoints_are_deleted(tmp_path):
    """All but the newest ones, also where one is a link to another disk. What a killed run left is
    deleted, and what belongs to later steps than those from which a run continues; somebody's copy
    is not."""
    for steps, keep, left in ((2, 1, [2]), (4, 2, [2, 4]), (6, 2, [4, 6]), (8, 9, [4, 6, 8]),
                              (10, 1, [10])):
        save_checkpoint(str(tmp_path), steps, *small_policy(0), {}, keep)
        assert saved_steps(tmp_path) == left
    for name in ("step-000008.tmp", "12.probe", "step-000010.bak"):
        (tmp_path / "ckpt" / name).mkdir()
    (tmp_path / "rollouts").mkdir()
    for steps in (0, 4, 8, 12):
        for name in (f"eval-{steps:06d}.jsonl", f"rollouts/step-{steps:06d}.jsonl"):
            (tmp_path / name).touch()
    for steps, left in ((10, {"step-000010"}), (-1, set())):
        clean_folder(str(tmp_path), steps)
        assert set(os.listdir(tmp_path / "ckpt")) == left | {"step-000010.bak"}
        kept = {f"{k:06d}.jsonl" for k in (0, 4, 8) if k <= steps}
        assert {p.name[5:] for p in tmp_path.glob("eval-*")} == kept
        assert {p.name[5:] for p in tmp_path.glob("rollouts/*")} == kept
    save_checkpoint(str(tmp_path), 12, *small_policy(0), {}, 1)
    (tmp_path / "ckpt/step-000012").rename(tmp_path / "disk")
    (tmp_path / "ckpt/step-000012").symlink_to(tmp_path / "disk")
    save_checkpoint(str(tmp_path), 14, *small_policy(0), {}, 1)
    assert sorted(os.listdir(tmp_path / "ckpt")) == ["step-000010.bak", "step-000014"]
    assert (tmp_path / "disk").is_dir()


def test_a_request_to_stop_is_no_damage(tmp_path, monkeypatch):
    """torch.distributed.checkpoint wraps every exception. A signal's must come out as it is."""
    def interrupted(*_, **__):
        raise CheckpointException("", {0: (KeyboardInterrupt("stopped by SIGTERM"), None)})
    monkeypatch.setattr(lib.checkpoint, "dcp", SimpleNamespace(load=interrupted, save=interrupted))
    with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
        load_checkpoint("x", *small_policy(0))
    with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
        save_checkpoint(str(tmp_path), 1, *small_policy(0), {}, keep=1)
    assert os.listdir(tmp_path / "ckpt") == []


def test_a_folder_that_is_not_shared(tmp_path, monkeypatch):
    """Another machine's folder of the same name: noticed before training, and when the machines
    have different checkpoints."""
    clock = SimpleNamespace(time=iter(range(0, 1000, 25)).__next__, sleep=lambda seconds: None)
    with monkeypatch.context() as m:
        m.setattr(lib.files, "time", clock)
        m.setattr(lib.files, "barrier", lambda: shutil.rmtree(tmp_path / "ckpt"))
        with pytest.raises(ValueError, match="not visible to rank 0: it must be on a file system"):
            clean_folder(str(tmp_path), 0)
    monkeypatch.setattr(lib.checkpoint, "all_gather", lambda path: [path, "step-000002"])
    with pytest.raises(ValueError, match="not all ranks see the same checkpoints"):
        find_checkpoint(str(tmp_path), {}, ())


MUST_BE_EQUAL = set("""model task seed max_prompt_tokens chat_template chat_template_kwargs
max_response_tokens temperature max_steps batch_size mini_batch_size lr lr_decay weight_decay
grad_clip entropy_coef lora_rank lora_alpha dtype""".split())
OWN = {"train_apo": {"filter_incorrect", "stage_1_steps", "off_policy", "beta2"},
       "baselines.rebel": {"eta", "kl_coef"},
       "baselines.ppo": {"clip_ratio", "clip_value", "kl_coef", "gamma", "gae_lambda", "critic_lr"},
       "baselines.grpo": {"group_size", "clip_ratio", "kl_coef"},
       "baselines.oapl": {"group_size", "beta1", "beta2", "drop_equal"}}


@pytest.mark.parametrize("stage", OWN)
def test_a_run_continues_with_the_constants_that_decide_its_results(stage, tmp_path):
    """Every constant is in train_apo.MAY_DIFFER or in a set above. One that the checkpoint does not
    know is another value, too; one that it alone knows is none."""
    def found(**changes):
        return find_checkpoint(str(tmp_path), constants | changes, MAY_DIFFER)[1]

    constants, equal = vars(arguments(import_module(stage))), MUST_BE_EQUAL | OWN[stage]
    new = {k: v + "x" if isinstance(v, str) else v + 1 for k, v in constants.items()}
    assert set(constants) == MAY_DIFFER | equal and not MAY_DIFFER & equal
    save_checkpoint(str(tmp_path), 1, *small_policy(0), constants | {"gone": 1}, keep=1)
    assert found(**{name: new[name] for name in MAY_DIFFER}) == 1
    for name in equal:
        with pytest.raises(ValueError, match=f"was trained with {name} = {constants[name]!r}, thi"):
            found(**{name: new[name]})
    with pytest.raises(ValueError, match="was trained with added = None, this run has 0"):
        found(added=0)
    covered = {"fingerprint of model": "a", "fingerprint of prompts": "b"}
    save_checkpoint(str(tmp_path), 1, *small_policy(0), constants | covered, keep=1)
    changes = {name: new[name] for name in ("model", "task", "chat_template_kwargs")} | covered
    assert found(**changes) == 1
    with pytest.raises(ValueError, match="was trained with model = "):
        found(**changes | {"fingerprint of model": "another"})


# ---- checks of a running step --------------------------------------------------------------------

@pytest.fixture
def one_step(tmp_path):
    """one_step(dtype, logp_tolerance, off, loss, norm): a run of which three steps are done makes
    an update with a sampler that is `off` per token."""
    def call(dtype, tolerance, off, loss=0.25, norm=2.0):
        run = Run(str(tmp_path), {}, (), dtype=dtype, max_steps=9, eval_every=9, save_every=0,
                  keep_checkpoints=1, save_rollouts=0, resume=False, logp_tolerance=tolerance,
                  wandb="")
        run.step, (run.trained, run.optimizer) = 3, small_policy(0)
        next(run.steps())
        micro = pack([0], [[1, 2]], [[4, 5]], [[-1.0, -2.0]])
        run.measure(micro, torch.tensor(loss), micro.sampled_logps - off, micro.sampled_logps,
                    0.5 * micro.response_mask)
        run.check_update(Update([micro], 2), norm)
    return call


LIMITS = {torch.float32: 1e-4, torch.bfloat16: 0.1}  # on a CPU


@cpu_only
@pytest.mark.parametrize("dtype", LIMITS)
def test_a_step_that_must_not_reach_the_weights(dtype, one_step, tmp_path):
    """A sampler with other weights stops the run, and the steps that are complete are saved. The
    limit is fixed for each dtype, or the user's, which may be met exactly. NaN is an error, too.
    So is a loss or a gradient that is not finite."""
    one_step(dtype, 0.0, 0.9 * LIMITS[dtype])
    one_step(dtype, 0.25, 0.25)
    for tolerance, off in ((0.0, 1.1 * LIMITS[dtype]), (0.25, 0.2501), (0.25, float("nan"))):
        shutil.rmtree(tmp_path / "ckpt", ignore_errors=True)
        with pytest.raises(SystemExit, match="error: step 3: vLLM's .* other weights"):
            one_step(dtype, tolerance, off)
        assert saved_steps(tmp_path) == [3]
    for loss, norm in ((float("nan"), 1.0), (0.5, float("inf"))):
        with pytest.raises(SystemExit, match="step 3: the loss is .* weights were not updated"):
            one_step(dtype, 0.0, 0.0, loss, norm)


@pytest.mark.parametrize("rewards, truncated, growth, said", [
    ((0.3, 0.6, 0.5), 0.5, 0.009, None), ((0.0, 0.0), 0.0, 0.0, None),
    ((0.09, 0.0), 0.0, 0.0, None), ((0.3, 0.3), 0.0, 0.03, "by 0.04 per token on average, in the"),
    ((0.4, 0.7, 0.1), 0.0, 0.0, "collapsed: reward 0.100, after 0.700 in step 1"),
    ((0.5,), 0.51, 0.0, "51% of the responses were truncated")])
def test_warnings(rewards, truncated, growth, said):
    """Of a sampler that drifts, of a collapse and of truncated responses, not of a slow start,
    noise, a half that is truncated or a good run."""
    lines = warnings_about([{"step": i, "reward": r, "truncated": truncated,
                             "logp_diff_mean": 0.01 + growth * i} for i, r in enumerate(rewards)])
    assert len(lines) == (said is not None) and all(said in line for line in lines)


def test_memory_or_disk_space_runs_out():
    """One line: where, how much was requested, and what to lower. Other errors keep their
    traceback."""
    set_activity("step 7, train")
    for error in (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0"),
                  RuntimeError("[enforce fail] Tried to allocate 2.50 GiB"), MemoryError()):
        line = foreseen(error)
        assert line.startswith("error: step 7, train: out of memory") and "--offload" in line
        assert ("2.50 GiB" in line) == ("2.50" in str(error)) and "\n" not in line
    assert "no space left on the disk for f.pt" in foreseen(OSError(errno.ENOSPC, "full", "f.pt"))
    assert foreseen(ValueError("another")) is None


# ---- memory --------------------------------------------------------------------------------------

def test_the_micro_batch_is_the_fastest_that_fits():
    """Nothing is recomputed where there is room; the smallest is taken where nothing fits."""
    with torch.device("meta"):  # the shape of 1.5B
        shape = Qwen2(Config(hidden_size=1536, num_hidden_layers=28, num_attention_heads=12,
                             intermediate_size=8960))

    def needed(tokens, recompute):
        on_device, _ = estimate(shape, 1, tokens, "bfloat16", recompute, compile=True,
                                gpu=True)
        return sum(on_device.values())

    for recompute, room, choice in (
            (False, 72e9, (16384, False)), (False, 60e9, (8192, False)),
            (False, needed(8192, False) + 1, (8192, False)), (True, 72e9, (16384, True)),
            (False, 24e9, (2048, True))):
        assert choose(lambda *x, room=room: needed(*x) < room, recompute) == choice
    assert needed(16384, False) > 60e9 > needed(8192, False) > 45e9
    # Whole: weights of 2 bytes and gradients of 4, of which one process has the latter anyway.
    total = sum(p.numel() for p in shape.parameters())
    for shards, bytes_each in ((1, 2), (8, 5.5)):
        on_device, _ = estimate(shape, shards, 8192, "bfloat16", defer_sharding=True, gpu=True)
        assert on_device["whole"] == round(bytes_each * total)
    alone, _ = estimate(shape, 1, 8192, "bfloat16", reference=False, gpu=True)
    assert alone["frozen weights"] == 0 and on_device["frozen weights"] == 2 * total / shards


@pytest.mark.parametrize("longest, largest, tokens", [(300, 9000, 2048), (300, 600, 600),
                                                      (9000, 90000, 9000)])
def test_the_plan_has_room_for_a_micro_batch(longest, largest, tokens, monkeypatch, capsys):
    """Of 2,048 tokens, of all that the mini-batch has, or of one sequence that is longer."""
    monkeypatch.setattr(lib.memory, "available_host_memory", lambda: 64e9)
    with torch.device("meta"):
        shape = Qwen2(Config())
    make_plan(shape, longest, largest, "bfloat16", 2048, True, False, False)
    on_device, _ = estimate(shape, 1, tokens, "bfloat16", True,
                            defer_sharding=largest > 2048)
    assert f"needs about {in_words(on_device)} beside" in capsys.readouterr().out
