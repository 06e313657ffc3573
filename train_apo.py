"""Stage 2 of A*-PO: train on-policy, with one response per prompt and a least-squares loss.

    python train_apo.py                                        # the embedded arithmetic task
    torchrun --standalone --nproc_per_node=8 train_apo.py config/math.py   # Qwen2.5-1.5B on MATH
    torchrun --standalone --nproc_per_node=8 train_apo.py config/math.py config/7b.py \
        --out=out/math_7b

Each step samples one response y for each prompt x of a batch from the current policy pi, and
minimises

    ( beta2 ln( pi(y|x) / pi_ref(y|x) )  -  (r(x, y) - V*(x)) )^2

with V* from estimate_value.py. For the optimal policy the two terms are equal: its log-ratio is the
optimal advantage. Compared with PPO and GRPO there is no critic, no group of responses per prompt,
no clipping and no importance ratio (baselines/ has PPO, GRPO, REBEL and OAPL in the same shape).
With stage_1_steps the first steps generate nothing: they train on stage 1's own samples.

Reads data/<task>/{train,test}.jsonl and <out>/values.pt. Writes <out>/metrics.jsonl, one line per
step, <out>/eval-<step>.jsonl, the responses of each evaluation, <out>/ckpt, <out>/model and
<out>/report.md. If it is interrupted, the same command continues from the newest checkpoint, with
any number of processes. For another run on the same values:

    mkdir -p out/higher_lr && cp out/math/values.pt out/higher_lr
    torchrun --standalone --nproc_per_node=8 train_apo.py config/math.py --lr=2e-6 \
        --out=out/higher_lr
"""
import os
from dataclasses import dataclass
from functools import partial

import reward
from evaluate import held_out_accuracy
from lib.batches import make_updates
from lib.cli import check, check_settings, configure, one_line_errors
from lib.data import (batch_at, fingerprint_prompts, load_prompts, print_first_prompt,
                      sampling_seed, subset, task_name)
from lib.distributed import (cuda, device, local_world_size, rank, run_stage, set_activity,
                             stop_requested, world_size)
from lib.files import lock
from lib.memory import make_plan
from lib.run import Run
from lib.samples import PROMPT_SETTINGS, match_values, read_stage_1
from lib.weights import fingerprint
from model import Qwen2, WithoutAdapters, load_sharded, open_model

import torch
from torch.nn.utils import clip_grad_norm_

# model, data, output
model = "data/arithmetic/model"  # initial policy and reference: a local folder, or a hub name
task = "arithmetic"              # a file in tasks/, or a path: my_tasks/chess.py
out = ""                         # the run's folder, with stage 1's values.pt; empty: out/<task>
seed = 0
# sampling
max_prompt_tokens = 0            # leave longer prompts out; 0: refuse what exceeds the context
chat_template = False            # wrap prompts in the model's template, for instruct models
chat_template_kwargs = ""        # the template's arguments, such as {"enable_thinking": false}
filter_incorrect = False         # leave out prompts that the reference never solved in stage 1
stage_1_steps = 0                # the first steps take stage 1's samples instead of sampling
max_response_tokens = 32         # longer responses are truncated
temperature = 1.0
# optimisation
max_steps = 32                   # 0: try one step with these settings, and write nothing
batch_size = 256                 # prompts per step, one response each
mini_batch_size = 128            # prompts per update of the weights
off_policy = False               # for many updates per sampling, or stage_1_steps: see limit_push
beta2 = 1e-3                     # strength of the KL regularisation; the gradient scales with it
lr = 4e-4
lr_decay = True                  # linearly to 0 at max_steps; False: constant
weight_decay = 0.0
grad_clip = 1.0                  # largest norm of an update's gradient
entropy_coef = 0.0               # bonus on the mean entropy per token; the paper's code has 1e-3
lora_rank = 0                    # of the adapters that are trained; 0: train all weights
lora_alpha = 32.0                # their effect is multiplied by lora_alpha / lora_rank
# evaluation on held-out prompts
eval_every = 4                   # steps
eval_prompts = 256               # number of prompts of data/<task>/test.jsonl; 0: all
# records
save_rollouts = 0                # steps between batches that are kept in <out>/rollouts; 0: none
save_every = 8                   # steps between checkpoints; 0: only if the run is stopped
keep_checkpoints = 2             # the newest ones stay in <out>/ckpt
resume = True                    # continue from the newest; False: start anew and delete them
wandb = ""                       # log to this project of Weights & Biases; empty: don't
# the machine
dtype = "float32"                # of computation, float32 or bfloat16; master weights are float32
compile = False                  # torch.compile: faster steps, but the first takes a minute more
micro_batch_tokens = 0           # tokens in one forward and backward pass, on each rank; 0: choose
checkpoint_activations = False   # recompute activations in backward: slower, far less memory
offload = False                  # keep weights, AdamW's state and the reference in host memory
gpu_memory_utilization = 0.5     # share of the GPU's memory for vLLM while it generates
tp = 1                           # GPUs that share a vLLM engine, for models too large for one
logp_tolerance = 0.0             # largest mean |ln p(vLLM) - ln p(trainer)|; 0: by dtype
# --------------------------------------------------------------------------------------------------

# A run may continue with other values of these: they change no sample, and no gradient beyond
# rounding.
MAY_DIFFER = {"out", "eval_every", "eval_prompts", "save_rollouts", "save_every",
              "keep_checkpoints", "resume", "wandb", "compile", "micro_batch_tokens",
              "checkpoint_activations", "offload", "gpu_memory_utilization", "tp",
              "logp_tolerance"}


def apo_loss(logps, ref_logps, rewards, v_star, beta2):
    """Mean of (beta2 ln(pi/pi_ref) + V* - r)^2. Paper, stage 2.

    All (B,); log-probabilities are summed over the response. EOS is part of the sum: to stop is an
    action of the policy, too.
    """
    return (beta2 * (logps - ref_logps) + v_star - rewards).square().mean()


def limit_push(logps, micro, advantages):
    """The log-probabilities, without a gradient where a token has been pushed down far enough.

    Every update makes a response with r < V* less probable. On-policy it is soon sampled no more.
    Among old samples it stays, and the push would only end at a log-ratio of (r - V*) / beta2, some
    hundred nats below 0; what the response loses goes to responses that nobody has sampled. So the
    push on a token ends where it is 0.8 times as probable as when it was sampled: PPO's lower clip
    (arXiv 1707.06347, eq. 7). It bounds what TOPR (arXiv 2503.14286) bounds by the ratio of whole
    responses; that of a token stays above rounding in bfloat16 however long the response is.

    logps (T,): of the tokens of `micro` under the policy; advantages (B,): r - V*. On-policy
    nothing is held back. tests/test_bandit.py has an example with five responses.
    """
    log_ratio = logps.detach() - micro.sampled_logps
    far_enough = (micro.per_token(advantages) < 0) & (log_ratio < -0.2)  # exp(-0.2) = 0.8
    return torch.where(far_enough, logps.detach(), logps)


# ---- what comes before the networks, the same for the algorithms in baselines/ -------------------

@dataclass
class Inputs:
    """What a run is, and all that it reads from files."""
    algorithm: str
    folder: str           # the run's
    path: str             # the model's folder
    config: object        # model.Config
    tokenizer: object
    rows: list            # training prompts
    test: list            # held-out prompts
    fingerprints: dict    # {part: SHA-256}: stage 1 and checkpoints must have been made with these


@one_line_errors()
def read_inputs(args, algorithm="A*-PO"):
    """Check the settings, and read prompts, config and tokenizer. Exits with one line on a mistake.

    algorithm: names a baseline's folder, if --out is empty.
    """
    check_settings(args.dtype, max_response_tokens=args.max_response_tokens,
                   batch_size=args.batch_size, mini_batch_size=args.mini_batch_size,
                   eval_every=args.eval_every, keep_checkpoints=args.keep_checkpoints, tp=args.tp)
    check(args.batch_size % args.mini_batch_size == 0, f"--mini_batch_size={args.mini_batch_size} "
          f"does not divide --batch_size={args.batch_size}")
    check(args.mini_batch_size % world_size == 0, f"--mini_batch_size={args.mini_batch_size} is "
          f"not a multiple of the {world_size} processes")
    check(args.temperature > 0, f"--temperature={args.temperature}: training needs samples; it "
          "must be > 0")
    for name in ("beta2", "grad_clip", "lora_alpha"):  # each is a factor of the gradient
        check(getattr(args, name, 1), f"--{name}=0: nothing would be learned; it must be above 0")
    path, config, tokenizer = open_model(args.model)
    rows, test = (load_prompts(args.task, split, tokenizer, args.max_prompt_tokens,
                               config.max_position_embeddings, args.max_response_tokens,
                               args.chat_template, args.chat_template_kwargs)
                  for split in ("train", "test"))
    suffix = "" if algorithm == "A*-PO" else f"_{algorithm.lower()}"
    folder = args.out or os.path.join("out", task_name(args.task) + suffix)
    return Inputs(algorithm, folder, path, config, tokenizer, rows,
                  subset(test, args.eval_prompts, seed=0),
                  {"model": fingerprint(path, tokenizer), "prompts": fingerprint_prompts(rows),
                   "reward": reward.fingerprint(rows)})


@one_line_errors()
def make_run(args, inputs, responses_per_prompt=1, critic=False, reference=True):
    """Find the checkpoint to continue from, plan the memory, and build the engine.

    Returns (Run, Engine, Plan). Exits if the run is finished, or with one line on a mistake.
    critic, reference: whether the memory has to hold these networks, too.
    """
    rows = inputs.rows
    check(args.batch_size <= len(rows), f"--batch_size={args.batch_size}: there are {len(rows)} "
          "prompts")
    if args.max_steps:  # a try writes nothing
        lock(inputs.folder)
    constants = {"algorithm": inputs.algorithm, **vars(args), **{
        f"fingerprint of {part}": digest for part, digest in inputs.fingerprints.items()}}
    # With lr_decay, max_steps decides the learning rate of every step.
    run = Run(inputs.folder, constants, MAY_DIFFER | (set() if args.lr_decay else {"max_steps"}),
              dtype=getattr(torch, args.dtype), max_steps=args.max_steps,
              eval_every=args.eval_every, save_every=args.save_every,
              keep_checkpoints=args.keep_checkpoints, save_rollouts=args.save_rollouts,
              resume=args.resume, logp_tolerance=args.logp_tolerance, wandb=args.wandb)
    if run.is_finished():
        more = "" if args.lr_decay else "raise --max_steps to continue, or "
        print(f"{run.folder} is trained: {run.step} steps; {more}start anew with --resume=False or "
              "another --out")
        raise SystemExit
    print_first_prompt(rows, inputs.tokenizer)
    print(f"{len(rows):,} prompts, {len(rows) // args.batch_size} steps per epoch; "
          f"{args.max_steps} steps of {args.batch_size} prompts, processes: {world_size}")
    longest = max(len(row["tokens"]) for row in rows + inputs.test) + args.max_response_tokens
    largest = args.mini_batch_size * responses_per_prompt // world_size * longest
    with torch.device("meta"):
        shape = Qwen2(inputs.config)
        if args.lora_rank:
            shape.add_adapters(args.lora_rank, args.lora_alpha)
    plan = make_plan(shape, longest, largest, args.dtype, args.micro_batch_tokens,
                     args.checkpoint_activations, args.offload, args.compile, critic, reference)
    set_activity("building the engine")
    from rollout import Engine  # imports vLLM, which takes seconds
    engine = Engine(inputs.path, args.dtype, longest, args.gpu_memory_utilization, args.tp)
    engine.sleep()
    if plan.offload and cuda:  # AdamW runs on the CPU; torchrun and vLLM leave it one thread
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_world_size))
    run.measure_accuracy = partial(held_out_accuracy, engine, inputs.test, args.seed,
                                   args.max_response_tokens)
    set_activity("loading the models")
    return run, engine, plan


def decay(args, step):
    """The factor of the learning rate in a step."""
    return 1 - step / max(args.max_steps, 1) if args.lr_decay else 1.0


def finish(run, inputs):
    """Write the model and the report. If the run was asked to stop, write a checkpoint instead."""
    run.finish(inputs.path)
    if rank == 0:
        from report import write_report  # imports matplotlib
        print(f"wrote {write_report(run.folder)}")


# ---- the algorithm -------------------------------------------------------------------------------

def main(args):
    # ---- prompts, V* of stage 1, the checkpoint to continue from, and the engine ----
    inputs = read_inputs(args)
    with one_line_errors():
        names = ("temperature", "max_response_tokens", *PROMPT_SETTINGS)
        expected = inputs.fingerprints | {name: getattr(args, name) for name in names}
        rows, all_v_star, digest = match_values(inputs.folder, inputs.rows, expected,
                                                args.filter_incorrect)
        epoch = len(rows) // args.batch_size  # steps
        stage_1 = read_stage_1(inputs.folder, rows, args.stage_1_steps, epoch)
    inputs.rows, inputs.fingerprints["values"] = rows, digest
    run, engine, plan = make_run(args, inputs)

    # ---- policy, reference, optimizer ----
    load = partial(load_sharded, Qwen2, inputs.path, compute_dtype=run.dtype, plan=plan,
                   compile=args.compile)
    policy = load(torch.float32, lora=(args.lora_rank, args.lora_alpha))
    reference = (WithoutAdapters(policy) if args.lora_rank  # adapters off: the initial model
                 else load(run.dtype).requires_grad_(False))
    optimizer = torch.optim.AdamW(policy.trained_parameters(), lr=args.lr, betas=(0.9, 0.999),
                                  weight_decay=args.weight_decay, fused=True)
    run.start(engine, policy, optimizer)

    for step in run.steps():
        # ---- sample one response y ~ pi(.|x) per prompt ----
        with run.phase("generate"):
            index = batch_at(step, len(rows), args.batch_size, args.seed)
            batch = [rows[i] for i in index]
            from_stage_1 = step < args.stage_1_steps  # sample k of a prompt in its epoch k
            if from_stage_1:
                responses = [stage_1[row["id"], step // epoch] for row in batch]
            else:
                seeds = [sampling_seed(args.seed, "stage 2", step, row["id"]) for row in batch]
                responses = engine.generate([row["tokens"] for row in batch], seeds,
                                            args.max_response_tokens, args.temperature, logps=True)
        if stop_requested():  # the same answer on all ranks; this step hasn't changed the weights
            break
        engine.sleep()        # until the sync the GPU's memory belongs to the trainer

        # ---- score: r(x, y) in other processes, while the reference runs; V*(x) from stage 1 ----
        wait_for_grades = reward.start_grading(batch, responses)
        v_star = all_v_star[index].to(device)                                            # (batch,)

        # ---- log-probabilities under the reference, in the micro-batches of training ----
        with run.phase("reference"), torch.no_grad():
            updates = make_updates(batch, responses, args.mini_batch_size, plan.micro_batch_tokens)
            for update in updates:
                for micro in update.micro_batches:
                    micro.ref_logps = reference.token_logps(                                 # (T,)
                        micro.input_ids, micro.cu_seqlens, args.temperature, micro.response_mask)
                    if from_stage_1:  # the reference has sampled
                        micro.sampled_logps = micro.ref_logps
            reference.reshard()  # FSDP would keep the root gathered until a backward pass
        with run.phase("grade"), run.reward_errors():
            graded = wait_for_grades()
            rewards = torch.tensor(graded.rewards, device=device)                        # (batch,)

        # ---- regress beta2 ln(pi / pi_ref) on r - V* ----
        for group in optimizer.param_groups:
            group["lr"] = args.lr * decay(args, step)
        with run.phase("train"):
            # From the second update on, y comes from a slightly older policy, without importance
            # ratio. Two updates do no clear harm; four or more need off_policy (docs/claims.md).
            for update in updates:
                for micro in update.micro_batches:
                    last = micro is update.micro_batches[-1]
                    policy.defer_sharding(plan.defer_sharding and not last)
                    # The logits are divided by the temperature, as vLLM did: pi is what is sampled.
                    logps, entropy = policy.token_logps(
                        micro.input_ids, micro.cu_seqlens, args.temperature, micro.response_mask,
                        entropy=True)                                                  # (T,), (T,)
                    if args.off_policy:
                        logps = limit_push(logps, micro, (rewards - v_star)[micro.index])
                    loss = apo_loss(micro.sum(logps), micro.sum(micro.ref_logps),
                                    rewards[micro.index], v_star[micro.index], args.beta2)
                    loss = loss * len(micro) / args.mini_batch_size  # its share of the mean
                    bonus = (args.entropy_coef * entropy.sum() / update.num_tokens
                             if args.entropy_coef else 0)
                    # FSDP averages gradients over the ranks; the shares have to be added up.
                    ((loss - bonus) * world_size).backward()
                    # Of stage 1's samples the KL is KL(pi_ref || pi).
                    run.measure(micro, loss, logps,
                                logps.detach() if from_stage_1 else micro.ref_logps, entropy)
                grad_norm = clip_grad_norm_(policy.parameters(), args.grad_clip).full_tensor()
                # Or exit, before the weights change.
                run.check_update(update, grad_norm.item(), sampled=not from_stage_1)
                optimizer.step()
                optimizer.zero_grad()

        # ---- bring the new weights to vLLM ----
        with run.phase("sync"):
            if step + 1 >= args.stage_1_steps or run.evaluation_is_due(step + 1):
                engine.sync(policy.gather_weights(run.dtype))
        run.log(batch, responses, graded, v_star=v_star.mean().item(),
                responses_from="stage 1" if from_stage_1 else "policy")
    finish(run, inputs)


if __name__ == "__main__":
    run_stage(main, configure(__file__))
