"""What surrounds a training loop: continue, measure, check, log, evaluate, save, stop."""
import json
import math
import os
import sys
import time
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from uuid import uuid4

from lib import checkpoint
from lib.cli import check, one_line_errors
from lib.data import versions
from lib.distributed import (all_gather, all_reduce_sum, cuda, device, rank, set_activity,
                             stop_requested, world_size)
from lib.files import atomic_dir, read_json, read_jsonl, write_jsonl
from lib.memory import peak_memory
from lib.weights import copy_unchanged
from reward import RewardError

import torch

HEADER = ("step  reward  acc(greedy/sampled)      kl    loss   gnorm  length  trunc  |dlogp|  tok/s"
          "   seconds: gen  ref train sync")


class Run:
    """One training run in the folder `folder`. All ranks have one and call its methods together."""

    def __init__(self, folder, constants, may_differ, *, dtype, max_steps, eval_every, save_every,
                 keep_checkpoints, save_rollouts, resume, logp_tolerance, wandb):
        """Find the checkpoint to continue from. Raises ValueError if it can't be continued.

        constants: {name: value} of all that must be the same for a run to continue, but for the
        names in may_differ; dtype: of computation; the others as in train_apo.py.
        """
        self.folder, self.constants, self.dtype = folder, constants, dtype
        self.max_steps, self.eval_every, self.save_every = max_steps, eval_every, save_every
        self.keep_checkpoints, self.save_rollouts = keep_checkpoints, save_rollouts
        # Rounding per token, on average: 3e-7 in float32; in bfloat16 8e-4 on arithmetic, 0.05
        # with SmolLM2-135M.
        self.logp_limit = logp_tolerance or (
            0.1 if dtype == torch.bfloat16 else 1e-2 if cuda else 1e-4)
        self.wandb_project, self.wandb = wandb, None
        check(not wandb or find_spec("wandb"), f"--wandb={wandb}: pip install wandb")
        self.metrics_path = f"{folder}/metrics.jsonl"
        self.checkpoint, self.step, self.history = None, 0, []
        if resume and max_steps:
            self.checkpoint, self.step = checkpoint.find_checkpoint(folder, constants, may_differ)
        if self.checkpoint:
            check(os.path.isfile(self.metrics_path), f"{self.metrics_path} is missing, but "
                  f"{self.checkpoint} continues it: put it back, or start anew with --resume=False")
            rows = read_jsonl(self.metrics_path, ("step",))
            self.history = [m for m in rows if m["step"] < self.step]
        elif resume and max_steps and (trained := read_json(f"{folder}/model/training.json")):
            # A run that wrote no checkpoints, or whose checkpoints were deleted.
            checkpoint.check_constants(f"{folder}/model", trained["constants"], constants,
                                       may_differ)
            self.step = trained["steps"]
            check(self.step >= max_steps, f"{folder}/model was trained in {self.step} steps, and "
                  "no checkpoint is left from which it could continue; choose another --out, or "
                  "start anew with --resume=False")
        self.saved_step = self.step
        self.warned_step = -10      # when something was last warned about
        # measure_accuracy(path) measures the engine's policy, and writes its responses to `path`:
        # {"accuracy": ..., "accuracy_sampled": ..., ...}, or {} if the run is to stop.
        self.measure_accuracy = None

    def is_finished(self):
        """Whether <folder>/model is the result of all steps already."""
        steps = read_json(f"{self.folder}/model/training.json").get("steps")
        return (steps == self.step >= self.max_steps > 0
                and (not self.checkpoint or "accuracy" in self.history[-1]))

    def start(self, engine, policy, optimizer, trained=None):
        """Load the checkpoint, if there is one, and bring the weights to the engine.

        trained: the module whose parameters the optimizer has, if it is more than the policy.
        """
        self.engine, self.policy, self.optimizer = engine, policy, optimizer
        self.before_training, self.trained = {}, trained or policy
        with one_line_errors():
            if self.max_steps:
                checkpoint.clean_folder(self.folder, self.step if self.checkpoint else -1)
            if self.checkpoint:
                set_activity("loading the checkpoint")
                checkpoint.load_checkpoint(self.checkpoint, self.trained, optimizer)
                print(f"continuing from {self.checkpoint}")
        engine.sync(policy.gather_weights(self.dtype))
        if not self.max_steps:  # a try: nothing is measured or written
            return
        if self.wandb_project and rank == 0:
            self.use_wandb(self.start_wandb)
        if not self.checkpoint:
            accuracy = self.evaluate()
            self.before_training = {k.replace("accuracy", "accuracy_start"): v
                                    for k, v in accuracy.items()}
            if accuracy:
                print(f"held-out accuracy before training: {accuracy['accuracy']:.3f} greedy, "
                      f"{accuracy['accuracy_sampled']:.3f} at temperature 1")
        elif self.evaluation_is_due(self.step) and "accuracy" not in self.history[-1]:
            self.history[-1].update(self.evaluate())  # the run was stopped during this evaluation
            self.write_metrics()
        print(HEADER, flush=True)

    def evaluation_is_due(self, step):
        return step % self.eval_every == 0 or step == self.max_steps

    def evaluate(self):
        set_activity("evaluation")
        with self.reward_errors():
            return self.measure_accuracy(f"{self.folder}/eval-{self.step:06d}.jsonl")

    # ---- in the loop -----------------------------------------------------------------------------

    def steps(self):
        """Yield the steps that are left, until a stop is requested; evaluate, print, save each."""
        while self.step < max(self.max_steps, 1) and not stop_requested():
            self.seconds, self.updates, self.logp_diffs = {}, [], []
            self.diff_mean = self.diff_max = 0.0
            self.sums = torch.zeros(3, device=device)  # of loss, KL and entropy in this update
            self.begin = time.perf_counter()
            yield self.step
            if not self.max_steps:
                print(HEADER, table_line(self.history[-1]), "one step with these settings went "
                      "well; nothing was written. To train, set --max_steps", sep="\n")
                sys.exit()
            self.step += 1
            self.write_metrics()
            if self.evaluation_is_due(self.step):
                self.history[-1].update(self.evaluate())
                self.write_metrics()
            if self.wandb:
                self.use_wandb(lambda: self.wandb.log(self.history[-1], step=self.step - 1))
            print(table_line(self.history[-1]), flush=True)
            if self.step >= self.warned_step + 10:
                for warning in warnings_about(self.history):
                    print(f"      warning: {warning}", flush=True)
                    self.warned_step = self.step
            last = self.step == self.max_steps
            if self.save_every and (last or self.step % self.save_every == 0):
                self.save()

    @contextmanager
    def phase(self, name):
        """Measure the seconds of a phase. A GPU's work is queued: wait for it at both ends."""
        set_activity(f"step {self.step}, {name}")
        if cuda:
            torch.cuda.synchronize()
        begin = time.perf_counter()
        yield
        if cuda:
            torch.cuda.synchronize()
        self.seconds[f"seconds_{name}"] = time.perf_counter() - begin

    def measure(self, micro, loss, logps, ref_logps, entropy):
        """Add a micro-batch to its update's metrics. loss: its share of the update's loss; logps
        and entropy (T,): the policy's; ref_logps (T,): the reference's.

        The KL comes from the sampler's log-probabilities. They are of the policy that made the
        samples, so the mean of ln(pi/pi_ref) estimates a KL divergence. The trainer's are of a
        policy that has changed since, from the step's second update on.
        """
        mask = micro.response_mask
        kl = (micro.sampled_logps - ref_logps)[mask].sum()
        self.sums += torch.stack((loss.detach(), kl, entropy.detach().sum()))
        if not self.updates:  # until the first update the trainer has the weights of the sampler
            self.logp_diffs.append((logps.detach() - micro.sampled_logps)[mask].abs())

    def check_update(self, update, grad_norm, sampled=True):
        """End an update's metrics. Exits, on all ranks, if it must not reach the weights: the loss
        or the gradient is not finite, or the responses were sampled from other weights. sampled:
        whether the engine has sampled in this step."""
        if sampled and not self.updates:
            diff = torch.cat(self.logp_diffs)
            self.diff_mean = all_reduce_sum(diff.sum()).item() / update.num_tokens
            self.diff_max = max(all_gather(diff.max().item()))
            if not self.diff_mean <= self.logp_limit:  # also for NaN
                self.stop(f"error: step {self.step}: vLLM's log-probabilities differ from the "
                          f"trainer's by {self.diff_mean:.2g} per token (allowed: "
                          f"{self.logp_limit:.2g}; the largest: {self.diff_max:.2g}): it samples "
                          "from other weights, and the update was not made. If logp_diff_mean in "
                          "metrics.jsonl grew slowly, it is rounding: raise --logp_tolerance")
        loss, kl, entropy = all_reduce_sum(self.sums).tolist()
        self.sums.zero_()
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            sys.exit(f"error: step {self.step}: the loss is {loss}, the gradient norm {grad_norm}. "
                     "The weights were not updated. Start anew in another --out with a lower --lr, "
                     "or try --dtype=float32")
        self.updates.append((loss, kl, entropy, grad_norm))

    def log(self, batch, responses, graded, **more):
        """Add this step's metrics, over all ranks, updates and micro-batches, and `more`, the
        algorithm's own. Every save_rollouts steps the batch itself is kept, too."""
        tokens, n = sum(len(r.tokens) for r in responses), len(responses)
        loss, kl, entropy, grad_norm = (sum(column) for column in zip(*self.updates, strict=True))
        self.history.append({
            "step": self.step, "reward": torch.tensor(graded.rewards).mean().item(),
            "loss": loss / len(self.updates), "kl": kl / tokens, "entropy": entropy / tokens,
            "grad_norm": grad_norm / len(self.updates), "response_length": tokens / n,
            "truncated": sum(r.truncated for r in responses) / n, **more,
            "lr": self.optimizer.param_groups[0]["lr"],
            "logp_diff_max": self.diff_max, "logp_diff_mean": self.diff_mean,
            "grade_timed_out": sum(graded.timed_out) / n, "tokens": tokens, **self.seconds,
            "seconds_step": time.perf_counter() - self.begin,
            "memory_gb": max(all_gather((peak_memory() - self.engine.memory) / 1e9)),
            **(self.before_training if not self.history else {})})
        kept = self.save_rollouts and (self.step + 1) % self.save_rollouts == 0
        if kept and self.max_steps and rank == 0:
            write_jsonl(f"{self.folder}/rollouts/step-{self.step + 1:06d}.jsonl", [
                {"id": row["id"], "tokens": r.tokens, "text": r.text, "truncated": r.truncated,
                 "reward": reward, "sampled_logp": sum(r.logps)}
                for row, r, reward in zip(batch, responses, graded.rewards, strict=True)])

    # ---- files, and ends -------------------------------------------------------------------------

    @contextmanager
    def reward_errors(self):
        """Where responses are graded: a fault of a reward function ends the run."""
        try:
            yield
        except RewardError as e:
            self.stop(f"error: step {self.step}: {str(e).removeprefix('error: ')}")

    def stop(self, error):
        """Exit with one line, after saving the steps that are complete."""
        if self.step > self.saved_step:
            self.save()
        sys.exit(error)

    def write_metrics(self):
        if rank == 0:
            write_jsonl(self.metrics_path, self.history)

    @one_line_errors()
    def save(self):
        set_activity("saving a checkpoint")
        checkpoint.save_checkpoint(self.folder, self.step, self.trained, self.optimizer,
                                   self.constants, self.keep_checkpoints)
        self.saved_step = self.step

    def finish(self, initial_model):
        """Write <folder>/model in Hugging Face format; initial_model: the folder of the model that
        was trained. If the run was asked to stop, write a checkpoint instead, and raise
        KeyboardInterrupt, which says how to continue."""
        if self.wandb:
            self.use_wandb(self.wandb.finish)
        if self.step < max(self.max_steps, 1):
            if self.step > self.saved_step:
                self.save()
            again = "run the same command again to continue"
            raise KeyboardInterrupt(
                f"stopped after {self.step} steps, which are saved: {again}, or make a model of "
                f"them: python export.py {self.folder}" if self.step else f"stopped: {again}")
        set_activity("writing the model")
        write_model(f"{self.folder}/model", self.policy, self.dtype, initial_model,
                    {"steps": self.step, "processes": world_size, "hardware": hardware(),
                     "versions": versions(), "constants": self.constants})
        print(f"wrote {self.metrics_path} and {self.folder}/model; at most "
              f"{max(m['memory_gb'] for m in self.history):.1f} GB per process beside its engine")

    # ---- Weights & Biases ------------------------------------------------------------------------

    def start_wandb(self):
        """One W&B run per folder: a run that continues keeps its id."""
        import wandb
        path = Path(self.folder, "wandb", "id")
        if not self.checkpoint or not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(uuid4().hex[:8])
        self.wandb = wandb.init(project=self.wandb_project, id=path.read_text(), resume="allow",
                                name=os.path.basename(self.folder), dir=self.folder,
                                config=self.constants)

    def use_wandb(self, function):
        """An error switches it off, with a warning: the run goes on."""
        try:
            function()
        except Exception as e:
            self.wandb = None
            print(f"warning: W&B is switched off ({type(e).__name__}: "
                  f"{' '.join(str(e).split())[:200]}); metrics.jsonl has everything", flush=True)


def write_model(folder, policy, dtype, initial_model, training):
    """Write a model's folder in Hugging Face format: weights in `dtype`, what training doesn't
    change from the folder initial_model, and training.json. All ranks call it."""
    with atomic_dir(folder) as temporary:
        policy.save_pretrained(temporary, dtype)
        if policy.lora_scale:
            policy.save_adapters(os.path.join(temporary, "adapter"), training["constants"]["model"])
        if rank == 0:
            copy_unchanged(initial_model, temporary)
            with open(os.path.join(temporary, "training.json"), "w") as f:
                json.dump(training, f, indent=2)


# ---- the screen ----------------------------------------------------------------------------------

def warnings_about(history):
    """What a user should know about the last step's metrics: a list of lines."""
    now, lines = history[-1], []
    # It is 0 in steps with stage 1's samples.
    diff = now["logp_diff_mean"]
    first_diff = next((m["logp_diff_mean"] for m in history if m["logp_diff_mean"]), 0.0)
    if diff > 3 * first_diff + 1e-4:
        lines.append(f"vLLM's log-probabilities differ from the trainer's by {diff:.2g} per token "
                     f"on average, in the first step by {first_diff:.2g}. Slow growth is rounding; "
                     "a jump means that the samples come from other weights")
    best = max(history, key=lambda m: m["reward"])
    if best["reward"] >= 0.1 and now["reward"] < 0.2 * best["reward"]:
        lines.append(f"the policy has collapsed: reward {now['reward']:.3f}, after "
                     f"{best['reward']:.3f} in step {best['step']}; start anew with a lower --lr")
    if now["truncated"] > 0.5:
        lines.append(f"{now['truncated']:.0%} of the responses were truncated: lower --lr if it "
                     "began during training, else raise --max_response_tokens (from stage 1 on)")
    return lines


def table_line(m):
    """One step's metrics for the screen, under HEADER."""
    accuracy = f"{m['accuracy']:.3f} / {m['accuracy_sampled']:.3f}" if "accuracy" in m else ""
    kl = round(m["kl"], 5) + 0  # + 0: no minus before a zero
    return (f"{m['step']:4d}  {m['reward']:6.3f}  {accuracy:^19}  {kl:8.5f}  {m['loss']:6.4f}  "
            f"{m['grad_norm']:6.3f}  {m['response_length']:6.1f}  {m['truncated']:5.0%}  "
            f"{m['logp_diff_max']:.1e}  {m['tokens'] / m['seconds_step']:5.0f}  "
            f"{m['seconds_generate']:13.2f} {m.get('seconds_reference', 0):4.2f} "
            f"{m['seconds_train']:5.2f} {m['seconds_sync']:4.2f}")


def hardware():
    """This job's machine in words, such as "1 x NVIDIA H100 80GB HBM3"."""
    if cuda:
        return f"{world_size} x {torch.cuda.get_device_name()}"
    return f"{len(os.sched_getaffinity(0))} CPU cores"
