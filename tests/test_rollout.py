"""vLLM against the trainer: what is sampled must come from the weights that are trained. Real vLLM, float32."""
import pytest
import torch
from conftest import random_model, tiny_config

import job
from common import sampling_seed
from prepare import byte_tokenizer

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="exact on the CPU only; on a GPU test_cuda.py compares")
MAX_TOKENS = 24


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def setting(request, tmp_path_factory):
    """(engine built on one model, a different model of the same configuration)"""
    from rollout import Engine
    job.start()
    tokenizer = byte_tokenizer()
    config = tiny_config(hidden_size=128, vocab_size=len(tokenizer), tie_word_embeddings=request.param)
    path = str(tmp_path_factory.mktemp("model"))
    random_model(config, seed=0).save_pretrained(path)
    tokenizer.save_pretrained(path)
    engine = Engine(path, "float32", 400, gpu_memory=0.3)
    yield engine, random_model(config, seed=1)
    engine.shutdown()


def prompts():
    """Of many lengths, one longer than a block of the prefix cache."""
    g = torch.Generator().manual_seed(0)
    return [torch.randint(250, (n,), generator=g).tolist() for n in (1, 3, 10, 40, 300)]


def trainer_logps(model, prompt, tokens, temperature=1.0):
    ids = torch.tensor(prompt + tokens)
    with torch.no_grad():
        return model.token_logps(ids, torch.tensor([0, len(ids)], dtype=torch.int32), temperature)[len(prompt):]


def largest_difference(engine, model, temperature=1.0):
    responses = engine.generate(prompts(), [sampling_seed(i) for i in range(5)], MAX_TOKENS, temperature, logps=True)
    return max((trainer_logps(model, p, r.tokens, temperature) - torch.tensor(r.logps)).abs().max().item()
               for p, r in zip(prompts(), responses))


def test_sync(setting):
    """Before it the two disagree, after it they agree, greedy tokens too, twice in a row, with warm prefix caches: the three
    silent failures (stale lm_head, stale prefix cache, weights from the disk) would each show."""
    engine, model = setting
    assert largest_difference(engine, model) > 0.5
    for change in (0.0, 0.05):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(change * torch.randn(p.shape, generator=torch.Generator().manual_seed(3)))
        engine.sync(model.full_weights(), model.config.tie_word_embeddings)
        assert largest_difference(engine, model) < 1e-4
        assert largest_difference(engine, model, temperature=0.7) < 1e-4
    for prompt, response in zip(prompts(), engine.generate(prompts(), [0] * 5, MAX_TOKENS, 0.0)):
        ids = torch.tensor(prompt + response.tokens)
        with torch.no_grad():
            logits = model.logits(ids, torch.tensor([0, len(ids)], dtype=torch.int32))
        assert logits.argmax(-1)[len(prompt) - 1:-1].tolist() == response.tokens


def test_a_sync_that_does_not_arrive_is_noticed(setting, monkeypatch):
    """At a real learning rate a stale sampler's log-probabilities hide in the rounding: the weights themselves are compared."""
    engine, model = setting
    monkeypatch.setattr(engine.llm, "collective_rpc", lambda method, kwargs: [None for _ in kwargs["weights_iterator"]])
    engine.sync(model.full_weights(), model.config.tie_word_embeddings)  # these it has already
    with torch.no_grad():
        model.model.norm.weight[0] += 1e-6
    with pytest.raises(RuntimeError, match="model.norm.weight"):
        engine.sync(model.full_weights(), model.config.tie_word_embeddings)
    with torch.no_grad():
        model.model.norm.weight[0] -= 1e-6


def test_seeds_decide_the_samples(setting):
    """The same seed gives the same response, alone or in a batch and in any order; another seed another one."""
    engine, _ = setting
    prompt = prompts()[2]
    batch = engine.generate([prompt] * 4, [5, 6, 7, 5], MAX_TOKENS, logps=True)
    alone = engine.generate([prompt], [6], MAX_TOKENS, logps=True)[0]
    assert batch[1] == alone and batch[0] == batch[3]
    assert len({tuple(r.tokens) for r in batch}) == 3


def test_more_prompt_tokens_than_fit_a_batch(setting):
    """Long prompts, together over the engine's tokens per pass, with seeds: vLLM must not split a prompt on the CPU."""
    engine, model = setting
    g = torch.Generator().manual_seed(1)
    many = [torch.randint(250, (370,), generator=g).tolist() for _ in range(30)]
    assert len(engine.generate(many, range(30), 4)) == 30


def test_responses(setting):
    """EOS is among the tokens and not in the text; a cut response is not finished; stream() yields each index once."""
    engine, _ = setting
    tokenizer = byte_tokenizer()
    responses = engine.generate([[50]] * 300, range(300), MAX_TOKENS)
    ended = [r for r in responses if r.finished]
    assert ended and len(ended) < 300
    for r in responses:
        assert (r.tokens[-1] == tokenizer.eos_token_id) == r.finished and tokenizer.eos_token_id not in r.tokens[:-1]
        assert r.finished or len(r.tokens) == MAX_TOKENS
        assert r.logps == [] and "<|endoftext|>" not in r.text
    assert sorted(i for i, _ in engine.stream([[50]] * 20, range(20), 4)) == list(range(20))
