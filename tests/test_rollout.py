"""vLLM against the trainer: samples must come from the weights that are trained.

A real engine in float32 on the CPU.
"""
from lib.base_model import byte_tokenizer
from lib.data import sampling_seed
from lib.distributed import init_process_group

import pytest
import torch
from conftest import cpu_only, random_model, tiny_config

pytestmark = [cpu_only, pytest.mark.slow]  # test_cuda.py compares on a GPU
MAX_TOKENS = 24


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def setting(request, tmp_path_factory):
    """(engine, a model of the configuration that it was built with, but with other weights)"""
    from rollout import Engine
    init_process_group()
    tokenizer = byte_tokenizer()
    config = tiny_config(hidden_size=128, vocab_size=len(tokenizer),
                         tie_word_embeddings=request.param)
    path = str(tmp_path_factory.mktemp("model"))
    random_model(config, seed=0).save_pretrained(path)
    tokenizer.save_pretrained(path)
    engine = Engine(path, "float32", 400, gpu_memory_utilization=0.3)
    yield engine, random_model(config, seed=1)
    engine.llm.llm_engine.engine_core.shutdown()  # and the process group


def random_prompts(*lengths):
    g = torch.Generator().manual_seed(0)
    return [torch.randint(250, (n,), generator=g).tolist() for n in lengths]


PROMPTS = random_prompts(1, 3, 10, 40, 300)  # one is longer than a block of the prefix cache


def whole(prompt, response):
    """input_ids, cu_seqlens"""
    ids = torch.tensor(prompt + response.tokens)
    return ids, torch.tensor([0, len(ids)], dtype=torch.int32)


def largest_difference(engine, model, temperature=1.0):
    """Between vLLM's and the model's log-probabilities of samples."""
    seeds = [sampling_seed(i) for i in range(len(PROMPTS))]
    responses = engine.generate(PROMPTS, seeds, MAX_TOKENS, temperature, logps=True)
    with torch.no_grad():
        return max((model.token_logps(*whole(p, r), temperature)[len(p):] - torch.tensor(r.logps))
                   .abs().max().item() for p, r in zip(PROMPTS, responses, strict=True))


def test_sync(setting):
    """Different before a sync, equal after it, greedy tokens too, twice in a row, with a warm
    prefix cache: this would show a stale head, a stale cache, and weights read from the disk."""
    engine, model = setting
    assert largest_difference(engine, model) > 0.5
    for change in (0.0, 0.05):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(change * torch.randn(p.shape, generator=torch.Generator().manual_seed(3)))
        engine.sync(model.gather_weights())
        assert largest_difference(engine, model) < 1e-4
        assert largest_difference(engine, model, temperature=0.7) < 1e-4
    greedy = engine.generate(PROMPTS, [0] * len(PROMPTS), MAX_TOKENS, temperature=0.0)
    for prompt, response in zip(PROMPTS, greedy, strict=True):
        with torch.no_grad():
            logits = model.logits(*whole(prompt, response))
        assert logits.argmax(-1)[len(prompt) - 1:-1].tolist() == response.tokens


def test_a_sync_that_does_not_arrive_is_noticed(setting, monkeypatch):
    """At a real learning rate the log-probabilities of a stale sampler differ by less than their
    rounding: the weights themselves are compared."""
    engine, model = setting
    engine.sync(model.gather_weights())
    monkeypatch.setattr(engine.llm, "collective_rpc",
                        lambda method, kwargs: [None for _ in kwargs["weights_iterator"]])
    engine.sync(model.gather_weights())  # the engine has these already
    with torch.no_grad():
        model.model.norm.weight[0] += 1e-6
    with pytest.raises(RuntimeError, match="model.norm.weight"):
        engine.sync(model.gather_weights())


def test_seeds_decide_the_samples(setting):
    """The same seed gives the same response, alone, in a batch and in any order; others differ."""
    engine, _ = setting
    prompt = PROMPTS[2]
    batch = engine.generate([prompt] * 4, [5, 6, 7, 5], MAX_TOKENS, logps=True)
    [alone] = engine.generate([prompt], [6], MAX_TOKENS, logps=True)
    assert batch[1] == alone and batch[0] == batch[3]
    assert len({tuple(r.tokens) for r in batch}) == 3


def test_more_prompt_tokens_than_fit_a_batch(setting):
    """With seeds, vLLM must not prefill a prompt in parts on the CPU: it can't sample then."""
    engine, _ = setting
    assert len(engine.generate(random_prompts(*[370] * 30), range(30), 4)) == 30


def test_responses(setting):
    """EOS is among the tokens and not in the text; without it a response is truncated, and MATH
    gives 0 for it; stream() yields each index once."""
    import reward
    engine, _ = setting
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
