"""The rollout engine: vLLM inside the trainer's processes, and the one place that touches it.

Every rank has an engine of its own and samples its share of the prompts; with tp = 2, 4 ... so many consecutive ranks share
one, each holding a slice of every layer.

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
from contextlib import suppress
from glob import glob
from typing import NamedTuple

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")    # the engine lives in this process
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")            # GiB, used without a GPU
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"])  # what it logs before it reads that variable, too

import torch  # common or job comes before it, to quiet it
from vllm import LLM, SamplingParams
from vllm.sampling_params import RequestOutputKind

import job
from common import progress

PROBES = ("model.embed_tokens.weight", "model.norm.weight")  # vLLM keeps these under the checkpoint's names, unfused


class Response(NamedTuple):
    tokens: list      # response token ids, the EOS included if it ended by itself
    text: str         # without special tokens
    finished: bool    # ended with EOS (otherwise cut at max_tokens)
    logps: list       # ln p of each token as sampled, float; empty unless asked for


class Engine:
    def __init__(self, path, dtype, max_len, gpu_memory, tp=1):
        """path: a local Hugging Face folder; dtype: "float32" or "bfloat16"; max_len: prompt + response, in tokens;
        gpu_memory: share of the GPU's memory for weights and KV cache while awake; tp: ranks that share an engine. All ranks
        of a job call it together. Raises ValueError if tp doesn't fit the job or the model."""
        if job.local_world % tp:
            raise ValueError(f"--tp={tp} doesn't divide the {job.local_world} processes of a machine")
        self.cuda, self.asleep, self.tp = torch.cuda.is_available(), False, tp
        self.engines, self.index, self.place = job.world // tp, job.rank // tp, job.rank % tp
        # A prompt that is prefilled in parts makes vLLM wind its seeded generator back, which a CPU generator can't do.
        whole_prompts = {} if self.cuda else {"enable_chunked_prefill": False, "max_num_batched_tokens": max(max_len, 8192)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # between vLLM and torch
            self.llm = LLM(model=path, dtype=dtype, max_model_len=max_len, max_num_seqs=512, seed=0,
                           distributed_executor_backend="external_launcher", tensor_parallel_size=tp,  # these processes
                           gpu_memory_utilization=gpu_memory, enable_sleep_mode=self.cuda,
                           enforce_eager=not self.cuda,         # CUDA graphs survive a sync; compiling for a CPU takes long
                           logprobs_mode="processed_logprobs",  # after the temperature, as the trainer computes them
                           generation_config="vllm",            # no sampling defaults from the checkpoint
                           use_tqdm_on_load=False, disable_log_stats=True, **whole_prompts)
        job.barrier()
        if job.local_rank == 0:  # mapped by now: without a name they can't be left behind by a job that is killed
            for path in glob("/dev/shm/*-cpushm_*"):
                with suppress(OSError):  # another job's, already gone
                    os.unlink(path)

    def share(self, items):
        """This engine's part of a list, for stream()."""
        return items[self.index::self.engines]

    def stream(self, prompts, seeds, max_tokens, temperature=1.0, logps=False):
        """Sample one response per prompt on this engine; yield (index, Response) as they finish.

        prompts: list of token id lists; seeds: one int each, ignored where temperature is 0 (greedy); logps: the sampled
        tokens' log-probabilities are wanted (on two CPU cores a quarter of the time). Ranks that share an engine call it alike.
        All requests are queued at once, so the batch stays full until the queue is empty. Ends early if the job is to stop.
        """
        core = self.llm.llm_engine
        for i, (tokens, seed) in enumerate(zip(prompts, seeds, strict=True)):
            params = SamplingParams(temperature=temperature, max_tokens=max_tokens, logprobs=0 if logps else None,
                                    seed=seed if temperature > 0 else None, output_kind=RequestOutputKind.FINAL_ONLY)
            core.add_request(str(i), {"prompt_token_ids": tokens}, params)
        while core.has_unfinished_requests() and not (job.Me.stop and self.tp == 1):  # ranks of one engine must keep in step
            job.tick()
            for request in core.step():
                out = request.outputs[0]
                ln_p = [entry[token].logprob for token, entry in zip(out.token_ids, out.logprobs)] if logps else []
                yield int(request.request_id), Response(list(out.token_ids), out.text, out.finish_reason == "stop", ln_p)

    def generate(self, prompts, seeds, max_tokens, temperature=1.0, logps=False, desc=None):
        """The same with all engines: the list of Responses to all prompts, in their order, on every rank. desc: show a progress
        bar of this engine's share. A collective. If the job is to stop some are None: ask job.stopping() before use."""
        mine = self.share(range(len(prompts)))
        stream = self.stream(self.share(prompts), self.share(seeds), max_tokens, temperature, logps)
        bar = progress(stream, total=len(mine), desc=desc, unit="response") if desc else stream
        done = {mine[k]: response for k, response in bar}
        everywhere = [None] * len(prompts)
        for part in job.gather(done if self.place == 0 else {}):
            for i, response in part.items():
                everywhere[i] = response
        return everywhere

    def sync(self, weights, tied):
        """Take new weights, on all ranks together. weights: iterator of (checkpoint name, whole tensor), layer by layer, of
        which each rank keeps its slice; tied: embeddings tied. Raises RuntimeError if the engine doesn't hold them then."""
        if self.asleep:
            torch.cuda.empty_cache()  # what the trainer's allocator hoards is what the engine needs back
            self.llm.wake_up(["weights"])
        held = self.llm.apply_model(lambda m: {n: p.shape[0] for n, p in m.named_parameters() if n in PROBES})[0]
        # Of the vocabulary a rank holds its slice, the norm is whole everywhere.
        begin = {name: self.place * held[name] if "embed" in name else 0 for name in PROBES}
        probes = {}

        def stream():
            for name, tensor in weights:
                job.tick()
                if name in PROBES:
                    probes[name] = tensor[begin[name]:begin[name] + 64].clone()
                yield name, tensor

        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": stream()})
        if tied and not self.cuda:
            self.llm.apply_model(lambda m: m.lm_head.quant_method.process_weights_after_loading(m.lm_head))
        # In bfloat16 a step's change drowns in the rounding of log-probabilities. Bits don't lie: these few must be equal.
        held = self.llm.apply_model(lambda m: {n: p[:64].clone() for n, p in m.named_parameters() if n in PROBES})[0]
        for name, sent in probes.items():
            if not torch.equal(held[name][:len(sent)], sent.to(held[name])):
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
        """Ends the engine and, as vLLM does it, the process group. Last call, of all ranks."""
        job.finish()
        self.llm.llm_engine.engine_core.shutdown()
