"""The rollout engine: vLLM inside the trainer's process, and the one place that touches it.

It samples, takes new weights, and gets out of the GPU's memory while the trainer works, through vLLM's public calls
only. Weight sync can fail silently in three ways, each of which leaves a sampler that runs and is wrong:
  - reload_weights() without an iterator reads the old checkpoint from the disk: always pass the stream;
  - the prefix cache outlives a sync, so old prompts continue from stale keys and values: reset it every time;
  - on the CPU a tied lm_head is a packed copy that the reload doesn't reach: pack it again.
sync() therefore compares some weights bit for bit, and train_apo.py vLLM's log-probabilities with its own.
"""
import logging
import os
import warnings
from typing import NamedTuple

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")    # the engine lives in this process
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")            # GiB, used without a GPU
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"])  # what it logs before it reads that variable, too

import torch
from vllm import LLM, SamplingParams
from vllm.sampling_params import RequestOutputKind

PROBES = ("model.embed_tokens.weight", "model.norm.weight")  # vLLM keeps these under the checkpoint's names, unfused


class Response(NamedTuple):
    tokens: list      # response token ids, the EOS included if it ended by itself
    text: str         # without special tokens
    finished: bool    # ended with EOS (otherwise cut at max_tokens)
    logps: list       # ln p of each token as sampled, float; empty unless asked for


class Engine:
    def __init__(self, path, dtype, max_len, gpu_memory):
        """path: a local Hugging Face folder; dtype: "float32" or "bfloat16"; max_len: prompt + response, in tokens;
        gpu_memory: share of the GPU's memory for weights and KV cache while awake."""
        self.cuda, self.asleep = torch.cuda.is_available(), False
        # A prompt that is prefilled in parts makes vLLM wind its seeded generator back, which a CPU generator can't do.
        whole_prompts = {} if self.cuda else {"enable_chunked_prefill": False, "max_num_batched_tokens": max(max_len, 8192)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # between vLLM and torch
            self.llm = LLM(model=path, dtype=dtype, max_model_len=max_len, max_num_seqs=512, seed=0,
                           gpu_memory_utilization=gpu_memory, enable_sleep_mode=self.cuda,
                           enforce_eager=not self.cuda,         # CUDA graphs survive a sync; compiling for a CPU takes long
                           logprobs_mode="processed_logprobs",  # after the temperature, as the trainer computes them
                           generation_config="vllm",            # no sampling defaults from the checkpoint
                           use_tqdm_on_load=False, disable_log_stats=True, **whole_prompts)

    def stream(self, prompts, seeds, max_tokens, temperature=1.0, logps=False):
        """Sample one response per prompt; yield (index, Response) as they finish.

        prompts: list of token id lists; seeds: one int each, ignored where temperature is 0 (greedy); logps: the sampled
        tokens' log-probabilities are wanted (on two CPU cores a quarter of the time).
        All requests are queued at once, so the batch stays full until the queue is empty.
        """
        core = self.llm.llm_engine
        for i, (tokens, seed) in enumerate(zip(prompts, seeds, strict=True)):
            params = SamplingParams(temperature=temperature, max_tokens=max_tokens, logprobs=0 if logps else None,
                                    seed=seed if temperature > 0 else None, output_kind=RequestOutputKind.FINAL_ONLY)
            core.add_request(str(i), {"prompt_token_ids": tokens}, params)
        while core.has_unfinished_requests():
            for request in core.step():
                out = request.outputs[0]
                ln_p = [entry[token].logprob for token, entry in zip(out.token_ids, out.logprobs)] if logps else []
                yield int(request.request_id), Response(list(out.token_ids), out.text, out.finish_reason == "stop", ln_p)

    def generate(self, *args, **kwargs):
        """The same, complete and in the prompts' order."""
        return [response for _, response in sorted(self.stream(*args, **kwargs), key=lambda pair: pair[0])]

    def sync(self, weights, tied):
        """Take new weights. weights: iterator of (checkpoint name, tensor), layer by layer; tied: embeddings tied.
        Raises RuntimeError if the engine doesn't hold them afterwards."""
        if self.asleep:
            torch.cuda.empty_cache()  # what the trainer's allocator hoards is what the engine needs back
            self.llm.wake_up(["weights"])
        probes = {}

        def stream():
            for name, tensor in weights:
                if name in PROBES:
                    probes[name] = tensor[:64].clone()
                yield name, tensor

        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": stream()})
        if tied and not self.cuda:
            self.llm.apply_model(lambda m: m.lm_head.quant_method.process_weights_after_loading(m.lm_head))
        # In bfloat16 a step's change drowns in the rounding of log-probabilities. Bits don't lie: these few must be equal.
        for held in self.llm.apply_model(lambda m: {n: p[:64].clone() for n, p in m.named_parameters() if n in PROBES}):
            for name in PROBES:
                if not torch.equal(held[name], probes[name].to(held[name])):
                    raise RuntimeError(f"after the weight sync vLLM holds another {name} than the trainer")
        if self.asleep:
            torch.cuda.empty_cache()  # the copies that passed through
            self.llm.wake_up(["kv_cache"])
            self.asleep = False
        if not self.llm.reset_prefix_cache():
            raise RuntimeError("vLLM kept its prefix cache over a weight sync: requests are still running")

    def sleep(self):
        """Give weights and KV cache back to the GPU until the next sync. Nothing is copied: every step syncs anyway."""
        if self.cuda:
            self.llm.sleep(level=2)
            self.asleep = True

    def shutdown(self):
        """Ends the engine and, as vLLM does it, the process group. Last call."""
        self.llm.llm_engine.engine_core.shutdown()
