"""What the tests share.

    bash runs/test.sh                # everything
    bash runs/test.sh -m "not slow"  # the quick part
    bash runs/test.sh -k reward      # what has to do with rewards

test_cuda.py needs a GPU; tests that are exact on the CPU alone skip where there is one.
"""
import faulthandler
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))
os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub
# For the processes that tests start in other folders.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(REPO), os.environ.get("PYTHONPATH"))))

import estimate_value
import reward
from lib.data import fingerprint_prompts, load_prompts
from lib.distributed import init_process_group
from lib.files import write_jsonl
from lib.samples import PROMPT_SETTINGS, Response
from lib.weights import fingerprint
from model import Config, Qwen2
from prepare import byte_tokenizer

import torch

# GSM8K, MATH, the benchmarks and the Qwen2.5 tokenizer, where they are at hand.
REAL_DATA = REPO.parent / "shared" / "data"
needs_real_data = pytest.mark.skipif(not REAL_DATA.is_dir(), reason=f"no {REAL_DATA}")
cpu_only = pytest.mark.skipif(torch.cuda.is_available(), reason="exact on the CPU only")

MODEL, OUT = "data/arithmetic/model", "out/arithmetic"  # those of the stages


def command(script, *args, processes=0):
    """The command line of a stage: a file, or a module such as baselines.grpo. processes: of
    torchrun; 0: without it."""
    target = [str(REPO / script)] if script.endswith(".py") else ["-m", script]
    if processes:
        target = ["-m", "torch.distributed.run", "--standalone",
                  f"--nproc_per_node={processes}", *target]
    return [sys.executable, *target, *map(str, args)]


def environment(args):
    """Variables of a stage. For the first log-probabilities vLLM compiles a function that ranks
    them, which takes 3 s: not here, unless the stage itself is to compile."""
    return {**os.environ, "TORCHDYNAMO_DISABLE": str(int("--compile=True" not in args))}


def run(script, *args, cwd, check=True, processes=0, alone=False):
    """Run a stage in the folder `cwd`. Returns the process with its output.

    It runs as a user starts it if it is alone, or has several processes. Else stages that sample
    run one after the other in a process of this pytest's (stages.py).
    """
    samples = script.startswith(("estimate_value", "train_apo", "evaluate", "baselines"))
    if samples and not (alone or processes or torch.cuda.is_available()):
        done = stages_of_this_process().run(script, *args, cwd=cwd)
    else:
        done = subprocess.run(command(script, *args, processes=processes), cwd=cwd, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=600,
                              env=environment(args))
    assert not check or done.returncode == 0, done.stdout[-4000:]
    return done


class Stages:
    """The process of stages.py."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-u", REPO / "tests/stages.py"], text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, env=environment(()))
        self.output = tempfile.NamedTemporaryFile()

    def run(self, script, *args, cwd):
        request = [str(cwd), self.output.name, script, *map(str, args)]
        print(json.dumps(request), file=self.process.stdin, flush=True)
        status = self.process.stdout.readline()  # empty if the process has ended
        text = Path(self.output.name).read_text()
        return subprocess.CompletedProcess(request, int(status or -1), text)


@cache
def stages_of_this_process():
    return Stages()


def metrics_of(out):
    return [json.loads(line) for line in Path(out, "metrics.jsonl").read_text().splitlines()]


def what_counts(out):
    """The metrics of a run without what is measured in seconds and bytes."""
    return [{k: v for k, v in m.items() if "seconds" not in k and "memory" not in k}
            for m in metrics_of(out)]


def tiny_config(**changes):
    sizes = dict(vocab_size=300, hidden_size=64, intermediate_size=96, num_hidden_layers=3,
                 num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=1024,
                 rope_theta=10000.0, initializer_range=0.2)
    return Config(**sizes | changes)


def with_random_vectors(model):
    """The model, in which every parameter matters: norms and biases are random, too."""
    for p in model.parameters():
        if p.dim() == 1:
            torch.nn.init.normal_(p, mean=0.5, std=0.3)
    return model


def random_model(config, seed=0):
    torch.manual_seed(seed)
    return with_random_vectors(Qwen2(config))


def packed(lengths, vocab_size, seed=0):
    """Random (input_ids (T,), cu_seqlens (B + 1,))."""
    g = torch.Generator().manual_seed(seed)
    return (torch.randint(vocab_size, (sum(lengths),), generator=g),
            torch.tensor([0, *lengths]).cumsum(0).to(torch.int32))


def by_definition(logits, ids, lengths, temperature=1.0):
    """Of packed sequences, (T,) each, from their definitions. logits (T, V), ids (T,)"""
    logps, entropies = [], []
    for z, y in zip(logits.split(lengths), ids.split(lengths), strict=True):
        lp = torch.log_softmax(z.float() / temperature, -1)[:-1]
        logps += [lp.new_zeros(1), lp.gather(-1, y[1:, None]).squeeze(-1)]
        entropies += [lp.new_zeros(1), -(lp.exp() * lp).sum(-1)]
    return torch.cat(logps), torch.cat(entropies)


def logp_errors(engine, model, prompts, max_tokens, temperature=1.0):
    """|ln p of the engine - ln p of the model| for each token that the engine samples."""
    errors, device = [], model.model.norm.weight.device
    responses = engine.generate(prompts, range(len(prompts)), max_tokens, temperature, logps=True)
    for p, r in zip(prompts, responses, strict=True):
        ids = torch.tensor(p + r.tokens, device=device)
        cu = torch.tensor([0, len(ids)], dtype=torch.int32, device=device)
        logps = model.token_logps(ids, cu, temperature).detach()[len(p):].cpu()
        errors.append((logps - torch.tensor(r.logps)).abs())
    return torch.cat(errors)


# ---- stages in this process, with a random model -------------------------------------------------

def arguments(stage, *presets, **constants):
    """The constants of a stage, as its own command line would set them."""
    options = [f"--{name}={value}" for name, value in constants.items()]
    with pytest.MonkeyPatch.context() as m:
        m.setattr(sys, "argv", ["x", *map(str, presets), *options])
        return stage.configure(stage.__file__)


def error(stage, **constants):
    """The one line with which a stage stops before its work has begun."""
    with pytest.raises(SystemExit) as e:
        stage.main(arguments(stage, **constants))
    assert isinstance(e.value.code, str) and e.value.code.startswith("error: ")
    assert "\n" not in e.value.code
    return e.value.code


def save_values(folder, ids, rewards, v_star, meta):
    os.makedirs(folder, exist_ok=True)
    torch.save({"ids": ids, "rewards": rewards, "lengths": rewards.int(), "finished": rewards > 0,
                "v_star": torch.tensor(v_star), "meta": meta}, os.path.join(folder, "values.pt"))


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A fresh current folder with 16 training and 8 test prompts, a random model with a context of
    1,024 tokens, and a finished stage 1 with V* of 0, 0.1, 0.2 ..."""
    monkeypatch.chdir(tmp_path)
    tokenizer = byte_tokenizer()
    random_model(tiny_config(vocab_size=len(tokenizer))).save_pretrained(MODEL)
    tokenizer.save_pretrained(MODEL)
    for split, first, second, number in (("train", 10, 20, 16), ("test", 50, 60, 8)):
        write_jsonl(f"data/arithmetic/{split}.jsonl", [
            {"id": f"{split}/{i}", "task": "arithmetic", "prompt": f"{first + i}+{second}=?\n",
             "answer": str(first + i + second)} for i in range(number)])
    rows = load_prompts("arithmetic", "train", tokenizer, 0, 100, 12)
    constants = vars(arguments(estimate_value))
    meta = {"model": fingerprint(MODEL, tokenizer), "prompts": fingerprint_prompts(rows),
            "reward": reward.fingerprint(rows),
            **{name: constants[name] for name in ("temperature", "max_response_tokens", "dtype",
                                                  "seed", *PROMPT_SETTINGS)}}
    shuffled = [*range(8, 16), *range(8)]
    save_values(OUT, [rows[i]["id"] for i in shuffled], torch.ones(16, 2),
                [0.1 * i for i in shuffled], meta)
    write_jsonl(f"{OUT}/responses.jsonl", [{"id": row["id"], "responses": []} for row in rows])
    return tmp_path


class FakeEngine:
    """Random responses with right and wrong answers, and their log-probabilities under the weights
    of the last sync, which are `off` for every second response."""
    memory, off = 0, 0.1

    def __init__(self, path, *_):
        self.model, self.batches, FakeEngine.latest = Qwen2.from_pretrained(path), [], self

    def sync(self, weights):
        self.model.load_state_dict(dict(weights))

    def sleep(self):
        pass

    def generate(self, prompts, seeds, max_tokens, temperature=1.0, logps=False):
        responses = []
        assert len(set(seeds)) == len(seeds)
        for prompt, seed in zip(prompts, seeds, strict=True):
            g = torch.Generator().manual_seed(seed)
            length = torch.randint(1, max_tokens + 1, (1,), generator=g).item()
            tokens = torch.randint(257, (length,), generator=g).tolist()
            with torch.no_grad():
                logp = plain_logps(self.model, prompt, tokens)[0] + self.off * (seed % 2)
            responses.append(Response(tokens, f"#### {sum(summands(prompt)) + seed % 2}",
                                      length % 3 == 0, logp.tolist()))
        if logps:
            self.batches.append([*zip(prompts, responses, strict=True)])
        return responses


def summands(prompt):
    """(10, 20) of the tokens of "10+20=?\n", which are its bytes."""
    return tuple(map(int, bytes(prompt).decode().removesuffix("=?\n").split("+")))


def plain_logps(model, prompt, tokens):
    """Of each response token at temperature 0.7, and the entropy of its distribution."""
    ids = torch.tensor(prompt + tokens)
    z = model.logits(ids, torch.tensor([0, len(ids)], dtype=torch.int32))[len(prompt) - 1:-1]
    lp = torch.log_softmax(z / 0.7, -1)
    return lp[range(len(tokens)), tokens], -(lp.exp() * lp).sum(-1)


@pytest.fixture
def train(small, monkeypatch):
    """train(stage, **constants) -> its FakeEngine: a run of two steps of two updates with four
    responses each, in the folder of `small`."""
    settings = dict(out=OUT, max_steps=2, lr=1e-3, weight_decay=0.1, grad_clip=0.5,
                    entropy_coef=0.2, temperature=0.7, save_every=1, eval_every=9, batch_size=8,
                    mini_batch_size=4, max_response_tokens=12, micro_batch_tokens=30,
                    logp_tolerance=1)
    values = torch.load(f"{OUT}/values.pt")
    values["meta"] |= {name: settings[name] for name in ("temperature", "max_response_tokens")}
    torch.save(values, f"{OUT}/values.pt")

    def train(stage, **constants):
        stage.main(arguments(stage, **settings | constants))
        return FakeEngine.latest

    monkeypatch.setitem(sys.modules, "rollout", SimpleNamespace(Engine=FakeEngine))
    monkeypatch.setitem(sys.modules, "report", SimpleNamespace(write_report=str))  # takes a second
    init_process_group()
    yield train
    torch.distributed.destroy_process_group()


@pytest.fixture(autouse=True)
def no_timer():
    """A test that calls our collectives in this process starts the timer that would end it."""
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """A folder with the arithmetic data, its base model, and stage 1 of 256 prompts. runs/test.sh
    names one in TEST_BASE: whichever pytest process needs it first fills it for all of them."""
    folder = Path(os.environ.get("TEST_BASE") or tmp_path_factory.mktemp("base"))
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "out/arithmetic/values.pt").exists():
            run("prepare.py", cwd=folder)
            run("estimate_value.py", "--max_prompts=256", cwd=folder)
    return folder


@pytest.fixture
def workdir(base, tmp_path, monkeypatch):
    """A fresh current folder with that data, model and finished stage 1, to use or to spoil."""
    for name in ("data", "out"):
        shutil.copytree(base / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path
