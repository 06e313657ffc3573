"""vLLM against the trainer: samples must come from the weights that are trained.

A real engine in float32 on the CPU, for each shape that the three families have.
"""
import reward
from lib.distributed import init_process_group
from prepare import byte_tokenizer

import pytest
import torch
from conftest import cpu_only, logp_errors, random_model, tiny_config

pytestmark = [cpu_only, pytest.mark.slow]  # test_cuda.py compares on a GPU
MAX_TOKENS = 24
SHAPES = {"tied": {}, "untied": {"tie_word_embeddings": False}, "Qwen3": {"model_type": "qwen3"},
          "Llama": {"model_type": "llama"}}


@pytest.fixture(scope="module", params=SHAPES)
def setting(request, tmp_path_factory):
    """(engine, the folder of the model that it was built with, a model with other weights)"""
    from rollout import Engine
    init_process_group()
    tokenizer = byte_tokenizer()
    config = tiny_config(hidden_size=128, head_dim=32, vocab_size=len(tokenizer),
                         **SHAPES[request.param])
    path = str(tmp_path_factory.mktemp("model"))
    model = random_model(config, seed=0)
    model.hf_config = {"eos_token_id": tokenizer.eos_token_id}  # without it Llama's default is 2
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    engine = Engine(path, "float32", 400, gpu_memory_utilization=0.3)
    yield engine, path, random_model(config, seed=1)
    engine.llm.llm_engine.engine_core.shutdown()  # and the process group


def random_prompts(*lengths):
    g = torch.Generator().manual_seed(0)
    return [torch.randint(250, (n,), generator=g).tolist() for n in lengths]


PROMPTS = random_prompts(1, 3, 10, 40, 300)  # one is longer than a block of the prefix cache


def assert_same_text(engine, folder):
    """Greedy tokens of transformers, which opens the folder, are vLLM's."""
    from transformers import AutoModelForCausalLM
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    greedy = engine.generate(PROMPTS, [0] * len(PROMPTS), MAX_TOKENS, temperature=0.0)
    for p, r in zip(PROMPTS, greedy, strict=True):
        with torch.no_grad():
            logits = theirs(torch.tensor([p + r.tokens])).logits[0]
        assert logits.argmax(-1)[len(p) - 1:-1].tolist() == r.tokens


def test_sync(setting, tmp_path):
    """Log-probabilities and text are those of the folder before a sync, and the other model's after
    it, twice in a row, with a warm prefix cache: this would show a stale head, a stale cache, and
    weights read from the disk."""
    engine, folder, model = setting
    assert_same_text(engine, folder)
    assert logp_errors(engine, model, PROMPTS, MAX_TOKENS).max() > 0.5
    for change in (0.0, 0.05):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(change * torch.randn(p.shape, generator=torch.Generator().manual_seed(3)))
        engine.sync(model.gather_weights())
        for temperature in (1.0, 0.7):
            assert logp_errors(engine, model, PROMPTS, MAX_TOKENS, temperature).max() < 1e-4
    model.save_pretrained(tmp_path)
    assert_same_text(engine, tmp_path)


def test_a_sync_that_does_not_arrive_is_noticed(setting, monkeypatch):
    """At a real learning rate the log-probabilities of a stale sampler differ by less than their
    rounding: the weights themselves are compared."""
    engine, _, model = setting
    engine.sync(model.gather_weights())
    monkeypatch.setattr(engine.llm, "collective_rpc",
                        lambda method, kwargs: [None for _ in kwargs["weights_iterator"]])
    engine.sync(model.gather_weights())  # the engine has these already
    for name in ("model.embed_tokens.weight", "model.norm.weight"):
        with torch.no_grad():
            before = model.get_parameter(name).clone()
            model.get_parameter(name).flatten()[0] += 1e-6
        with pytest.raises(RuntimeError, match=name):
            engine.sync(model.gather_weights())
        with torch.no_grad():
            model.get_parameter(name).copy_(before)


@pytest.mark.parametrize("setting", ["tied"], indirect=True)
def test_samples(setting):
    """The same seed gives the same response, alone, in a batch and in any order; others differ.
    EOS is among the tokens and not in the text; without it a response is truncated, and MATH gives
    0 for it. stream() yields each index once. With seeds, vLLM must not prefill a prompt in parts
    on the CPU: it can't sample then. Prompt and response may be as long as max_len together."""
    engine, *_ = setting
    batch = engine.generate([PROMPTS[2]] * 4, [5, 6, 7, 5], MAX_TOKENS, logps=True)
    [alone] = engine.generate([PROMPTS[2]], [6], MAX_TOKENS, logps=True)
    assert batch[1] == alone and batch[0] == batch[3]
    assert len({tuple(r.tokens) for r in batch}) == 3

    eos = byte_tokenizer().eos_token_id
    responses = engine.generate([[50]] * 300, range(300), MAX_TOKENS)
    assert 0 < sum(r.truncated for r in responses) < 300
    for r in responses:
        assert (r.tokens[-1] != eos) == r.truncated and eos not in r.tokens[:-1]
        assert len(r.tokens) == MAX_TOKENS or not r.truncated
        assert r.logps == [] and "<|endoftext|>" not in r.text
    boxed = [r._replace(text=r"\boxed{5}") for r in responses]
    graded = reward.start_grading([{"task": "math", "answer": "5"}] * 300, boxed)()
    assert graded.rewards == [float(not r.truncated) for r in responses]

    assert sorted(i for i, _ in engine.stream([[50]] * 20, range(20), 4)) == list(range(20))
    longest = engine.generate(random_prompts(*[396] * 30), range(30), 4)
    assert all(len(r.tokens) == 4 or not r.truncated for r in longest)
