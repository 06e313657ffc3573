"""lib/: constants, files, data order, micro-batches, checkpoints, checks of a running step."""
import errno
import json
import os
import runpy
import shutil
from importlib import import_module
from types import SimpleNamespace

import lib.batches
import lib.checkpoint
import lib.cli
import lib.files
from lib.batches import Update, make_updates, pack, pack_by_tokens
from lib.checkpoint import clean_checkpoints, find_checkpoint, load_checkpoint, save_checkpoint
from lib.data import batch_at, fingerprint_prompts, sampling_seed, subset
from lib.distributed import foreseen, set_phase
from lib.files import atomic_dir, atomic_file, read_jsonl, write_jsonl
from lib.memory import check_engine_share, choose, estimate
from lib.run import Run, check_finite, sampler_error, warnings_about
from lib.watch import Watch
from model import Config, Qwen2

import pytest
import torch
from conftest import REPO, cpu_only
from torch.distributed.checkpoint.api import CheckpointException

# Checkpoints of one process.
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


@pytest.fixture
def configure(monkeypatch):
    """configure(script, *arguments of the command line)"""
    def call(script, *arguments):
        monkeypatch.setattr("sys.argv", ["some_stage.py", *map(str, arguments)])
        return lib.cli.configure(script)
    return call


# ---- constants -----------------------------------------------------------------------------------

@pytest.fixture
def script(tmp_path):
    """A script's globals, with the constants that configure() overrides."""
    path = tmp_path / "some_stage.py"
    path.write_text("lr = 1e-6\nmax_steps = 10\nresume = True\nmodel = 'a/b'\nLIMIT = 3\n")
    return runpy.run_path(path)


def test_constants_are_overridden_with_their_types(script, configure):
    constants = configure(script, "--lr=2", "--resume=False", "--model=12", "--max_steps=5")
    assert constants == {"lr": 2.0, "resume": False, "model": "12", "max_steps": 5}
    assert constants.items() <= script.items() and type(script["lr"]) is float


@pytest.mark.parametrize("argument, message", [
    ("--max_stepz=3", "did you mean max_steps?"), ("--max_steps=3.5", "max_steps is of type int"),
    ("--max_steps=True", "max_steps is of type int"), ("--resume=1", "resume is of type bool"),
    ("--lr=fast", "lr is of type float"), ("--lr", "--lr=value"), ("--lr=-1", "lr can't be -1"),
    ("--max_steps=-1", "max_steps can't be -1"), ("--LIMIT=4", "no constant 'LIMIT'"),
    ("no_such_preset.py", "neither --name=value nor a preset file")])
def test_mistakes_are_named(argument, message, script, configure, capsys):
    with pytest.raises(SystemExit) as e:
        configure(script, argument)
    said = capsys.readouterr().err
    assert e.value.code == 1 and said.count("\n") == 1 and message in said and argument in said


def test_presets(script, configure, capsys, tmp_path):
    """beta1 belongs to another stage and is skipped, an unknown name is a mistake. A later preset
    overrides an earlier one, and the command line both. Nothing in a preset is executed, and what
    isn't `name = value` is an error."""
    first, second, made = tmp_path / "a.py", tmp_path / "b.py", tmp_path / "made"
    first.write_text("lr = 3e-6  # comment\nbeta1 = 0.5\nmax_steps = 7\nmodel = 'c/d'\n")
    second.write_text("max_steps = 8\nmodel = 'e/f'\n")
    constants = configure(script, "--max_steps=9", first, second)
    assert constants == {"lr": 3e-6, "resume": True, "model": "e/f", "max_steps": 9}
    for text, message in ((f"model = open({str(made)!r}, 'w').name\n", "not a number, string or"),
                          ("betta1 = 0.5\n", "did you mean beta1?"), ("Lr = 2e-6\n", "'Lr'"),
                          ("lr: float = 1e-5\n", "line 1"), ("lr = = 2\n", "line 1"),
                          ("import os\n", "line 1"), ("lr = max_steps = 1\n", "line 1")):
        first.write_text(text)
        with pytest.raises(SystemExit):
            configure(script, first)
        said = capsys.readouterr().err
        assert said.startswith(f"error: {first}") and message in said and said.count("\n") == 1
    assert not made.exists()


PAPER = dict(max_prompt_tokens=256, max_response_tokens=1024, dtype="bfloat16", temperature=1.0,
             samples_per_prompt=8, beta1=0.5, beta2=1e-3, batch_size=256, mini_batch_size=128,
             lr=1e-6, lr_decay=False, adam_beta1=0.9, adam_beta2=0.999, weight_decay=0.01,
             grad_clip=1.0, entropy_coef=1e-3)
STEPS = {"gsm8k": 25 * (7473 // 256), "math": 25 * ((7498 - 339) // 256)}


@pytest.mark.parametrize("stage", ["estimate_value", "train_apo", "evaluate", "baselines.grpo"])
@pytest.mark.parametrize("size", ["1.5b", "3b", "7b"])
@pytest.mark.parametrize("task", STEPS)
def test_presets_hold_the_papers_settings(task, size, stage, configure):
    presets = [REPO / f"config/{name}.py" for name in (task, size) if name != "1.5b"]
    constants = configure(dict(vars(import_module(stage))), *presets)
    expected = {**PAPER, "task": task, "max_steps": STEPS[task]}
    assert {k: constants[k] for k in expected if k in constants} == {
        k: v for k, v in expected.items() if k in constants}
    assert constants["model"].lower() == f"qwen/qwen2.5-{size}"


# ---- files ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("text, message", [
    (b'{"id": 1}\n{"id": 2\n', "line 2: not valid JSON"), (b'{"ix": 1}\n', "line 1: no 'id'"),
    (b'{"id": 1}\n\n', "line 2: not valid JSON"), (b'{"id": 1}\n[1]\n', "line 2: no 'id'"),
    (b'{"id": "\xff"}\n', "line 1: not valid JSON"), (b"", "empty")])
def test_broken_lines_are_named(text, message, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(text)
    with pytest.raises(ValueError) as e:
        read_jsonl(path, ("id",))
    assert message in str(e.value) and str(path) in str(e.value)


def test_files_are_whole_or_as_before(tmp_path):
    path = tmp_path / "new" / "a.txt"

    def fail_halfway():
        with pytest.raises(RuntimeError), atomic_file(path) as f:
            f.write("half")
            raise RuntimeError

    fail_halfway()
    assert os.listdir(tmp_path / "new") == []
    write_jsonl(path, [{"a": "é"}])
    fail_halfway()
    assert json.loads(path.read_text()) == {"a": "é"} and os.listdir(tmp_path / "new") == ["a.txt"]


def test_folders_are_whole_or_as_before(tmp_path):
    path = tmp_path / "model"
    for content in ("1", "2", "half"):
        try:
            with atomic_dir(path) as folder, open(os.path.join(folder, "x"), "w") as f:
                f.write(content)
                assert content != "half"
        except AssertionError:
            pass
    assert os.listdir(tmp_path) == ["model"] and (path / "x").read_text() == "2"


# ---- data order and seeds ------------------------------------------------------------------------

def test_each_epoch_visits_every_prompt_once():
    """In an order that is a function of (seed, step): a resumed run sees the same prompts."""
    def epoch(number, seed=0):
        return [i for k in range(4) for i in batch_at(4 * number + k, 110, 25, seed)]
    assert len(set(epoch(0))) == 100 and set(epoch(0)) <= set(range(110))  # 10 don't fill a batch
    assert epoch(0) == epoch(0)
    assert len({tuple(e) for e in (epoch(0), epoch(1), epoch(0, seed=1), epoch(1, seed=1))}) == 4


def test_sampling_seeds_do_not_collide():
    seeds = {sampling_seed(s, "stage 1", f"gsm8k/train/{i}", k)
             for s in range(3) for i in range(500) for k in range(16)}
    assert len(seeds) == 3 * 500 * 16 and all(0 <= s < 2 ** 63 for s in seeds)


def test_subsets_are_nested_and_mixed():
    """The first rows of MATH's test set are all algebra: a subset must not be the first rows."""
    rows = [{"id": f"t/{i}"} for i in range(1000)]
    small, large = subset(rows, 50, 0), subset(rows, 200, 0)
    assert len(small) == 50 and [r for r in large if r in small] == small
    assert subset(rows, 0, 0) == rows and small != subset(rows, 50, 1)
    assert 300 < sum(int(r["id"][2:]) for r in small) / 50 < 700


def test_the_fingerprint_is_of_all_that_decides_samples_and_grades():
    row = {"id": "a", "task": "math", "tokens": [1, 2], "answer": "3", "solution": "1 + 2 = 3"}
    before = fingerprint_prompts([row])
    for changes, same in (({"id": "b"}, False), ({"task": "gsm8k"}, False),
                          ({"tokens": [1, 3]}, False), ({"answer": "4"}, False),
                          ({"solution": "2 + 1"}, True), ({"v_star": 0.5}, True)):
        assert (fingerprint_prompts([{**row, **changes}]) == before) == same, changes
    assert fingerprint_prompts([row, row]) != before


# ---- micro-batches -------------------------------------------------------------------------------

@pytest.mark.parametrize("limit", [64, 256, 700])
@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_micro_batches_are_filled_evenly(limit, ranks):
    """Every sequence once; equally many micro-batches for each rank, none over the limit unless it
    is one sequence; few of them; and the slowest rank of each has little more than an even share.
    """
    lengths = torch.randint(1, 129, (256,), generator=torch.Generator().manual_seed(0)).tolist()
    index, total = range(128, 256), sum(lengths[128:])
    filled = pack_by_tokens(index, lengths, limit, ranks)
    assert all(len(groups) == ranks for groups in filled)
    every = [group for groups in filled for group in groups]
    assert sorted(i for group in every for i in group) == list(index)
    assert all(sum(lengths[i] for i in g) <= limit or len(g) == 1 for g in every)
    if ranks == 1:  # neighbours in length share a micro-batch
        in_order = [lengths[i] for group in every for i in group]
        assert in_order == sorted(in_order, reverse=True)
    if limit > 64:
        assert len(every) < 1.1 * total / limit + 1 + ranks
    if limit == 700:
        slowest = [max(sum(lengths[i] for i in group) for group in groups) for groups in filled]
        assert sum(slowest) * ranks <= 1.05 * total


def test_pack_marks_the_response_by_length():
    """EOS equals PAD in Qwen, and may stand in a prompt: only lengths say what the response is."""
    micro = pack([2, 0], [[7, 0], [9], [0]], [[5, 0], [1], [0, 0, 3]],
                 [[-1.0, -2.0], [0.0], [-3.0, -4.0, -5.0]])
    assert micro.index.tolist() == [2, 0] and len(micro) == 2
    assert micro.input_ids.tolist() == [0, 0, 0, 3, 7, 0, 5, 0]
    assert micro.cu_seqlens.tolist() == [0, 4, 8] and micro.cu_seqlens.dtype == torch.int32
    assert micro.response_mask.tolist() == [False, True, True, True, False, False, True, True]
    assert micro.sampled_logps.tolist() == [0, -3, -4, -5, 0, 0, -1, -2]
    assert micro.sum(torch.arange(8.0)).tolist() == [6, 22]
    assert micro.per_token(torch.tensor([1.0, 2.0])).tolist() == [1, 1, 1, 1, 2, 2, 2, 2]


def test_ranks_share_an_update(monkeypatch):
    """Updates follow the responses' order; the ranks of each have every response once, and count
    the tokens of all ranks."""
    monkeypatch.setattr(lib.batches, "world_size", 2)
    rows = [{"tokens": [1] * (1 + i % 3)} for i in range(8)]
    responses = [SimpleNamespace(tokens=[2] * (i + 1), logps=[-0.5] * (i + 1)) for i in range(8)]
    shares = []
    for rank in (0, 1):
        monkeypatch.setattr(lib.batches, "rank", rank)
        shares.append(make_updates(rows, responses, 4, micro_batch_tokens=9))
    for number, updates in enumerate(zip(*shares, strict=True)):
        seen = [i for u in updates for micro in u.micro_batches for i in micro.index.tolist()]
        assert sorted(seen) == list(range(4 * number, 4 * number + 4))
        assert [u.num_tokens for u in updates] == [[1 + 2 + 3 + 4, 5 + 6 + 7 + 8][number]] * 2
        assert len({len(u.micro_batches) for u in updates}) == 1


# ---- checkpoints ---------------------------------------------------------------------------------

def small_policy(seed, updates):
    """A policy and its optimizer after so many updates."""
    torch.manual_seed(seed)
    policy = torch.nn.Linear(5, 3)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=0.1)
    for k in range(updates):
        update(policy, optimizer, k)
    return policy, optimizer


def update(policy, optimizer, k):
    """An update whose gradient depends on k: with equal ones AdamW's state would make no
    difference."""
    x = torch.randn(5, generator=torch.Generator().manual_seed(k))
    (10 ** k * policy(x)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_a_loaded_checkpoint_continues_bit_for_bit(tmp_path):
    """With AdamW's state: the third update is the one that would have been made."""
    saved, loaded = small_policy(seed=0, updates=2), small_policy(seed=1, updates=0)
    save_checkpoint(str(tmp_path), 2, *saved, {}, keep=1)
    load_checkpoint(*find_checkpoint(str(tmp_path), {}, ())[:1], *loaded)
    assert equal(saved[0], loaded[0])
    forgetful = torch.nn.Linear(5, 3)
    forgetful.load_state_dict(saved[0].state_dict())
    update(*saved, 2)
    update(*loaded, 2)
    update(forgetful, torch.optim.AdamW(forgetful.parameters(), lr=0.1), 2)
    assert equal(saved[0], loaded[0]) and not equal(saved[0], forgetful)


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp"])
def test_damage_that_sizes_do_not_show(name, tmp_path, caplog):
    """A file of zeros: loading fails in one line that says what to do."""
    save_checkpoint(str(tmp_path), 1, *small_policy(0, 1), {}, keep=1)
    file = tmp_path / "ckpt/step-000001" / name
    file.write_bytes(bytes(file.stat().st_size))
    path, _ = find_checkpoint(str(tmp_path), {}, ())
    with pytest.raises(ValueError, match="step-000001 can't be read .*; move it away, and") as e:
        load_checkpoint(path, *small_policy(1, 0))
    assert "\n" not in str(e.value) and not [r for r in caplog.records if r.name == "root"]


def test_damaged_checkpoints_are_skipped(tmp_path, capsys):
    """For a truncated or a missing file: the one before is taken, and it is said. If none is whole,
    that is an error, and nothing is deleted."""
    out = str(tmp_path)
    for steps in (2, 4):
        save_checkpoint(out, steps, *small_policy(0, 1), {"lr": 0.1}, keep=2)
    assert find_checkpoint(out, {"lr": 0.1}, ()) == (f"{out}/ckpt/step-000004", 4)
    file = tmp_path / "ckpt/step-000004/__0_0.distcp"
    os.truncate(file, file.stat().st_size - 1)
    assert find_checkpoint(out, {"lr": 0.1}, ()) == (f"{out}/ckpt/step-000002", 2)
    said = capsys.readouterr().out
    assert "step-000004 is damaged (__0_0.distcp has" in said and said.count("\n") == 1
    os.remove(tmp_path / "ckpt/step-000002/.metadata")
    with pytest.raises(ValueError, match="step-000002 is damaged .*; start anew with --resume=Fal"):
        find_checkpoint(out, {"lr": 0.1}, ())
    assert sorted(os.listdir(tmp_path / "ckpt")) == ["step-000002", "step-000004"]


def test_thinning_spares_what_is_whole(tmp_path):
    """A damaged checkpoint of a later step must not crowd out the good ones that are saved after it
    was skipped. What a killed run left is deleted, somebody's copy is not."""
    folder = tmp_path / "ckpt"
    for name in ("step-000002", "step-000004", "step-000008", "step-000010"):
        (folder / name).mkdir(parents=True)
    for keep, left in ((4, [2, 4, 6]), (2, [4, 6]), (1, [6])):
        save_checkpoint(str(tmp_path), 6, *small_policy(0, 0), {}, keep)
        assert sorted(os.listdir(folder)) == [f"step-00000{steps}" for steps in left]
    (folder / "step-000008.tmp").mkdir()
    (folder / "step-000006.bak").mkdir()
    clean_checkpoints(str(tmp_path), delete_all=False)
    assert sorted(os.listdir(folder)) == ["step-000006", "step-000006.bak"]
    clean_checkpoints(str(tmp_path), delete_all=True)
    assert os.listdir(folder) == ["step-000006.bak"]


def test_a_request_to_stop_is_no_damage(tmp_path, monkeypatch):
    """torch.distributed.checkpoint wraps every exception. A signal's must come out as it is."""
    def interrupted(*_, **__):
        raise CheckpointException("", {0: (KeyboardInterrupt("stopped by SIGTERM"), None)})
    monkeypatch.setattr(lib.checkpoint, "dcp", SimpleNamespace(load=interrupted, save=interrupted))
    with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
        load_checkpoint("x", *small_policy(0, 0))
    with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
        save_checkpoint(str(tmp_path), 1, *small_policy(0, 0), {}, keep=1)
    assert os.listdir(tmp_path / "ckpt") == []


def test_a_folder_that_is_not_shared(tmp_path, monkeypatch):
    """Another machine's folder of the same name: noticed before training, and when the machines
    have different checkpoints."""
    clock = SimpleNamespace(time=iter(range(0, 1000, 25)).__next__, sleep=lambda seconds: None)
    with monkeypatch.context() as m:
        m.setattr(lib.files, "time", clock)
        m.setattr(lib.files, "barrier", lambda: shutil.rmtree(tmp_path / "ckpt"))
        with pytest.raises(ValueError, match="not visible to rank 0: it must be on a file system"):
            clean_checkpoints(str(tmp_path), delete_all=False)
    monkeypatch.setattr(lib.checkpoint, "all_gather", lambda path: [path, "step-000002"])
    with pytest.raises(ValueError, match="not all ranks see the same checkpoints"):
        find_checkpoint(str(tmp_path), {}, ())


MAY_DIFFER = set("""out eval_every eval_prompts save_every save_rollouts keep_checkpoints resume
push_to_hub wandb tensorboard timeout_minutes compile micro_batch_tokens checkpoint_activations
offload_reference offload_optimizer tp replicate_nodes gpu_memory_utilization
logp_tolerance""".split())
MUST_BE_EQUAL = set("""model task seed max_prompt_tokens drop_long_prompts chat_template
max_response_tokens temperature max_steps batch_size mini_batch_size lr lr_decay adam_beta1
adam_beta2 weight_decay grad_clip entropy_coef dtype""".split())
OWN = {"train_apo": {"filter_incorrect", "beta2", "baseline"},
       "baselines.rebel": {"eta", "kl_coef"},
       "baselines.ppo": {"clip_ratio", "clip_value", "kl_coef", "gamma", "gae_lambda", "critic_lr"},
       "baselines.grpo": {"group_size", "clip_ratio", "kl_coef"}}


@pytest.mark.parametrize("stage", OWN)
def test_a_run_continues_with_the_constants_that_decide_its_results(stage, configure, tmp_path):
    """Of all constants: a new one must be put into one of the sets above."""
    stage, equal_in_stage = import_module(stage), MUST_BE_EQUAL | OWN[stage]
    constants = configure(dict(vars(stage)))
    assert set(constants) == MAY_DIFFER | equal_in_stage
    save_checkpoint(str(tmp_path), 1, *small_policy(0, 0), constants, keep=1)
    for name, value in constants.items():
        now = {**constants, name: value + "x" if isinstance(value, str) else value + 1}
        if name in MAY_DIFFER:
            assert find_checkpoint(str(tmp_path), now, stage.MAY_DIFFER)[1] == 1
        else:
            with pytest.raises(ValueError, match=f"was trained with {name} = {value!r}, this run"):
                find_checkpoint(str(tmp_path), now, stage.MAY_DIFFER)


# ---- checks of a running step --------------------------------------------------------------------

QUIET = {"wandb": "", "tensorboard": False}


def test_measure(tmp_path):
    """The difference between sampler and trainer is a mean of absolute values, over the response
    tokens of the step's first update; loss, KL and entropy are sums over each update."""
    run = Run(str(tmp_path), {"resume": False, "dtype": "float32", "logp_tolerance": 1.0,
                              "max_steps": 1, "save_every": 0, **QUIET}, ())
    next(run.steps())
    for micro_batches, shift in (([0, 1], [0.3, -0.3]), ([1], [5.0, 5.0])):
        kl = 0
        for i in micro_batches:
            micro = pack([i], [[1, 2], [3]], [[4, 5], [6, 7]], [[-1.0, -2.0], [-3.0, -4.0]])
            micro.ref_logps, logps = (torch.full([len(micro.input_ids)], 100.0) for _ in range(2))
            micro.ref_logps[-2:] = -1.5
            logps[-2:] = micro.sampled_logps[-2:] + (1 + i) * torch.tensor(shift)
            run.measure(micro, torch.tensor(0.25), logps, 0.5 * micro.response_mask)
            kl += [-1 - 2, -3 - 4][i] + 2 * 1.5
        tokens = 2 * len(micro_batches)
        run.check_update(Update(micro_batches, tokens), grad_norm=2.0)
        assert run.updates[-1] == pytest.approx((tokens / 8, kl, tokens / 2, 2.0))
    assert run.diff_mean == pytest.approx((0.3 + 0.3 + 0.6 + 0.6) / 4)
    assert run.diff_max == pytest.approx(0.6) and len(run.updates) == 2


def test_sampler_error():
    """A fixed limit for each dtype, or the user's. NaN is an error, too."""
    for allowed in ((0.05, "bfloat16", 0.0), (0.11, "bfloat16", 0.2), (1e-5, "float32", 0.0)):
        assert sampler_error(5, allowed[0], 0.3, *allowed[1:]) is None
    for mean, dtype in ((0.11, "bfloat16"), (float("nan"), "bfloat16"), (0.02, "float32")):
        line = sampler_error(5, mean, 0.3, dtype, 0.0)
        assert line.startswith("error: step 5: vLLM's") and "other weights" in line


def test_a_sampler_with_other_weights_stops_the_run_and_leaves_a_checkpoint(tmp_path, monkeypatch):
    run = Run(str(tmp_path), {"resume": False, "dtype": "bfloat16", "logp_tolerance": 0.0,
                              "max_steps": 9, "save_every": 0, "keep_checkpoints": 1, **QUIET}, ())
    run.watch = Watch(str(tmp_path), QUIET, 0)
    run.step, (run.trained, run.optimizer) = 3, small_policy(0, 0)
    next(run.steps())
    micro = pack([0], [[1, 2]], [[4, 5]], [[-1.0, -2.0]])
    micro.ref_logps = micro.sampled_logps
    run.measure(micro, torch.tensor(0.25), micro.sampled_logps - 1, 0.5 * micro.response_mask)
    with pytest.raises(SystemExit, match="error: step 3: vLLM's"):
        run.check_update(Update([micro], 2), grad_norm=2.0)
    assert os.listdir(tmp_path / "ckpt") == ["step-000003"]


def test_check_finite():
    check_finite(3, 0.5, 1.0)
    for loss, norm in ((float("nan"), 1.0), (0.5, float("inf"))):
        with pytest.raises(SystemExit, match="step 3: the loss is .* weights were not updated"):
            check_finite(3, loss, norm)


def test_warnings():
    """Of a sampler that drifts, of a collapse and of truncated responses, not of a slow start,
    noise or a good run."""
    def about(*rewards, truncated=0.0, growth=0.0):
        return warnings_about([{"step": i, "reward": r, "truncated": truncated,
                                "logp_diff_mean": 0.01 + growth * i}
                               for i, r in enumerate(rewards)], 32)
    assert about(0.3, 0.6, 0.5, growth=0.009) == about(0.0, 0.0) == about(0.02, 0.0) == []
    [line] = about(0.3, 0.3, growth=0.03)
    assert "trainer's by 0.04 per token on average, in the first step by 0.01." in line
    [line] = about(0.4, 0.7, 0.1)
    assert "collapsed: reward 0.100, after 0.700 in step 1" in line and "--lr" in line
    [line] = about(0.5, truncated=0.9)
    assert "90% of the responses were truncated at 32 tokens" in line
    assert "--max_response_tokens" in line


@cpu_only
def test_memory_or_disk_space_runs_out():
    """One line: where, how much was requested, and what to lower. Other errors keep their
    traceback."""
    set_phase("step 7, train")
    line = foreseen(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0"))
    assert line.startswith("error: step 7, train: out of host memory, 2.50 GiB more were "
                           "requested. Lower --micro_batch_tokens")
    for phase, remedy in (("building the engine", "--gpu_memory_utilization"),
                          ("KL of a/b", "Lower --micro_batch_tokens"),
                          ("loading the reference", "--offload_optimizer=True")):
        set_phase(phase)
        assert remedy in foreseen(MemoryError())
    assert "no space left on the disk for f.pt" in foreseen(OSError(errno.ENOSPC, "full", "f.pt"))
    assert foreseen(ValueError("another")) is None


# ---- memory --------------------------------------------------------------------------------------

SHAPE_1_5B = Config(hidden_size=1536, num_hidden_layers=28, num_attention_heads=12,
                    intermediate_size=8960)
SHAPE_3B = Config(hidden_size=2048, num_hidden_layers=36, num_attention_heads=16,
                  intermediate_size=11008)


def on_meta_device(config):
    with torch.device("meta"):
        return Qwen2(config)


def test_the_micro_batch_is_the_fastest_that_fits():
    """Nothing is recomputed where there is room; the smallest is taken where nothing fits."""
    shape = on_meta_device(SHAPE_1_5B)

    def choice(recompute, room):
        return choose(lambda *args: needed(*args) < room, recompute)

    def needed(tokens, recompute):
        on_device, _ = estimate(shape, 1, tokens, "bfloat16", 2048, recompute, compile=True)
        return sum(on_device.values())

    assert choice(False, 72e9) == (16384, False)
    assert choice(False, 60e9) == (8192, False)
    assert choice(True, 72e9) == (16384, True)
    assert choice(False, 24e9) == (2048, True)
    assert needed(16384, False) > 60e9 > needed(8192, False) > 45e9
    # Whole: weights of 2 bytes and gradients of 4, of which one process has the latter anyway.
    total = sum(p.numel() for p in shape.parameters())
    for shards, bytes_each in ((1, 2), (8, 5.5)):
        on_device, _ = estimate(shape, shards, 8192, "bfloat16", 2048, keep_whole=True)
        assert on_device["whole"] == round(bytes_each * total)


def test_an_engine_that_does_not_fit_beside_the_trainer():
    """3B on one GPU of 80 GB keeps 14 bytes per parameter there while vLLM generates."""
    shape = on_meta_device(SHAPE_3B)
    constants = {"dtype": "bfloat16", "offload_optimizer": False, "offload_reference": False}
    check_engine_share(shape, 1, 80e9, {**constants, "gpu_memory_utilization": 0.35})
    check_engine_share(shape, 2, 80e9, {**constants, "gpu_memory_utilization": 0.5})
    check_engine_share(shape, 1, 80e9, {**constants, "gpu_memory_utilization": 0.8,
                                        "offload_optimizer": True})
    with pytest.raises(ValueError, match="--gpu_memory_utilization=0.5: .* 43.2 GB of weights.*"
                       "more than its 80.0 GB; --gpu_memory_utilization=0.42 would fit"):
        check_engine_share(shape, 1, 80e9, {**constants, "gpu_memory_utilization": 0.5})
    with pytest.raises(ValueError, match="set --offload_optimizer=True, or use more GPUs"):
        check_engine_share(shape, 1, 24e9, {**constants, "gpu_memory_utilization": 0.5})
