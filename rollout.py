"""Everything that touches vLLM: sampling, taking new weights, and leaving the GPU to the trainer.

vLLM runs inside the trainer's processes. Every rank has an engine of its own and samples its share
of the prompts. With tp = 2 two neighbouring ranks share an engine, with tp = 4 four; each has a
slice of every layer. Only public calls of vLLM are used, but for packing the head on the CPU.

A weight sync can fail in three ways that raise no error: the sampler runs on, with wrong weights.
  - reload_weights() without an iterator reads the old checkpoint from the disk: pass an iterator;
  - the prefix cache survives a sync, with keys and values of the old weights: reset it every time;
  - on the CPU a tied lm_head is a packed copy that the reload does not reach: pack it again.
So sync() compares some weights bit for bit, and the training loop compares vLLM's log-probabilities
with its own (check_update in lib/run.py). Adapters leave the compared weights as they are: there
only the log-probabilities are a check.
"""
import json
import os
import warnings
from contextlib import suppress
from multiprocessing.shared_memory import SharedMemory

from lib.cli import check
from lib.distributed import (State, all_gather, barrier, cuda, local_world_size, rank,
                             restart_timer, world_size)
from lib.memory import memory_in_use, reset_peak_memory
from lib.samples import Response

import torch
from vllm import LLM, SamplingParams
from vllm.sampling_params import RequestOutputKind

# Weights that sync() compares. vLLM keeps these two under the checkpoint's names, unfused.
PROBES = ("model.embed_tokens.weight", "model.norm.weight")


def unlink_shared_memory():
    """Remove the names of the shared memory that vLLM makes for tp > 1, after all ranks have mapped
    it: memory without a name is freed when the last process that maps it ends, however it ends."""
    with open("/proc/self/maps") as f:
        files = {line.split()[-1] for line in f if "/dev/shm/" in line}
    for file in files:
        with suppress(OSError):  # another rank was faster
            if os.path.basename(file).startswith("psm_"):  # Python's: its resource tracker knows it
                SharedMemory(os.path.basename(file)).unlink()
            else:
                os.unlink(file)


class Engine:
    def __init__(self, path, dtype, max_len, gpu_memory_utilization, tp=1):
        """All ranks call it together.

        path: a local Hugging Face folder; dtype: "float32" or "bfloat16"; max_len: prompt and
        response, in tokens; gpu_memory_utilization: share of the GPU's memory for weights and KV
        cache; tp: ranks that share an engine. Raises ValueError if tp doesn't fit.
        """
        check(local_world_size % tp == 0,
              f"--tp={tp} doesn't divide the {local_world_size} processes of a machine")
        self.tp, self.asleep = tp, False
        self.num_engines, self.engine_index, self.tp_rank = world_size // tp, rank // tp, rank % tp
        with open(os.path.join(path, "config.json")) as f:
            self.tied = json.load(f).get("tie_word_embeddings", False)
        # vLLM's CPU backend can't sample with a seed if the prompt was prefilled in several parts.
        whole_prompts = {} if cuda else {"enable_chunked_prefill": False,
                                         "max_num_batched_tokens": max(max_len, 8192)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of vLLM about torch
            self.llm = LLM(
                model=path, dtype=dtype, max_model_len=max_len, max_num_seqs=512, seed=0,
                distributed_executor_backend="external_launcher",  # our processes are its workers
                tensor_parallel_size=tp, gpu_memory_utilization=gpu_memory_utilization,
                enable_sleep_mode=cuda,
                enforce_eager=not cuda,              # compiling for a CPU takes too long
                logprobs_mode="processed_logprobs",  # after the temperature, as in training
                generation_config="vllm",            # no sampling defaults from the checkpoint
                use_tqdm_on_load=False, disable_log_stats=True, **whole_prompts)
        self.tokenizer = self.llm.get_tokenizer()
        barrier()
        if tp > 1:
            unlink_shared_memory()
        self.memory = memory_in_use()  # bytes, not counted as the trainer's
        reset_peak_memory()

    def share(self, items):
        """This engine's part of a list."""
        return items[self.engine_index::self.num_engines]

    def stream(self, prompts, seeds, max_tokens, temperature=1.0, logps=False):
        """Sample one response per prompt on this engine; yield (index, Response) as they finish.

        prompts: list of token id lists; seeds: one int each, without effect where temperature is 0
        (greedy); logps: also return the sampled tokens' log-probabilities. All requests are queued
        at once, so the batch stays full to the end. Ranks that share an engine pass the same
        prompts. Ends early after a signal to stop.
        """
        engine = self.llm.llm_engine
        for i, (tokens, seed) in enumerate(zip(prompts, seeds, strict=True)):
            # Text is made once per response, below. vLLM would make it anew after every token, and
            # a Python object for every token's log-probability.
            params = SamplingParams(
                temperature=temperature, max_tokens=max_tokens, logprobs=0 if logps else None,
                seed=seed if temperature > 0 else None, output_kind=RequestOutputKind.FINAL_ONLY,
                detokenize=False, flat_logprobs=True)
            engine.add_request(str(i), {"prompt_token_ids": tokens}, params)
        while engine.has_unfinished_requests():
            if State.stop_signal and self.tp == 1:  # with tp > 1 the ranks must make the same steps
                return
            restart_timer()
            for request in engine.step():
                output = request.outputs[0]
                text = self.tokenizer.decode(output.token_ids, skip_special_tokens=True)
                yield int(request.request_id), Response(
                    list(output.token_ids), text, output.finish_reason != "stop",
                    output.logprobs.logprobs if logps else [])

    def generate(self, prompts, seeds, max_tokens, temperature=1.0, logps=False):
        """Sample with all engines. A collective: returns the list of all Responses on every rank.

        Arguments as of stream(). After a signal to stop, some Responses are None: ask
        stop_requested() before using them.
        """
        mine = self.share(range(len(prompts)))
        stream = self.stream(self.share(prompts), self.share(seeds), max_tokens, temperature, logps)
        done = {mine[k]: response for k, response in stream}
        responses = [None] * len(prompts)
        for part in all_gather(done if self.tp_rank == 0 else {}):
            for i, response in part.items():
                responses[i] = response
        return responses

    def sync(self, weights):
        """Replace the engine's weights, on all ranks together, and wake it if it sleeps.

        weights: iterator of (checkpoint name, whole tensor), layer by layer; each rank keeps its
        slice. Raises RuntimeError if the engine doesn't hold these weights afterwards.
        """
        if self.asleep:
            torch.cuda.empty_cache()  # the engine needs the memory that torch keeps for itself
            self.llm.wake_up(["weights"])
        rows = self.llm.apply_model(lambda m: {name: p.shape[0] for name, p in m.named_parameters()
                                               if name in PROBES})[0]
        # A rank holds its slice of the embedding, and the whole norm.
        begin = {name: self.tp_rank * rows[name] if "embed" in name else 0 for name in PROBES}
        sent = {}

        def stream():
            for name, tensor in weights:
                restart_timer()
                if name in PROBES:
                    sent[name] = tensor[begin[name]:begin[name] + 64].clone()
                yield name, tensor

        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": stream()})
        if self.tied and not cuda:
            self.llm.apply_model(
                lambda m: m.lm_head.quant_method.process_weights_after_loading(m.lm_head))
        # At a real learning rate, one step changes bfloat16 log-probabilities by less than their
        # rounding. The weights themselves are exact, so they must be equal bit for bit.
        held = self.llm.apply_model(lambda m: {name: p[:64].clone() for name, p
                                               in m.named_parameters() if name in PROBES})[0]
        for name, tensor in sent.items():
            if not torch.equal(held[name][:len(tensor)], tensor.to(held[name])):
                raise RuntimeError(f"after the weight sync vLLM holds another {name} than was sent")
        if self.asleep:
            torch.cuda.empty_cache()  # the copies that were sent
            self.llm.wake_up(["kv_cache"])
            self.asleep = False
        if not self.llm.reset_prefix_cache():
            raise RuntimeError("vLLM did not reset its prefix cache after the weight sync")

    def sleep(self):
        """Free the GPU memory of weights and KV cache until the next sync."""
        if cuda and not self.asleep:
            self.llm.sleep(level=2)  # 2: the weights are dropped, not copied: the sync brings them
            self.asleep = True
            reset_peak_memory()
