# Qwen2.5-7B base on MATH with the settings of the A*-PO paper's repository. For every stage:
#   python prepare.py --task=math
#   torchrun --nproc_per_node=4 estimate_value.py config/math_qwen2.5_7b.py
#   torchrun --nproc_per_node=4 train_apo.py config/math_qwen2.5_7b.py
#   torchrun --nproc_per_node=4 evaluate.py config/math_qwen2.5_7b.py --model=Qwen/Qwen2.5-7B,out/math_qwen2.5_7b/model
# 4 GPUs of 80 GB, or one with --offload_optimizer=True and 180 GB of host memory for it (python memory.py: what fits where).
model = "Qwen/Qwen2.5-7B"
task = "math"
out = "out/math_qwen2.5_7b"
dtype = "bfloat16"

max_prompt_tokens = 256
drop_long_prompts = True
max_response_tokens = 1024
temperature = 1.0

samples_per_prompt = 8
beta1 = 0.5
beta2 = 1e-3

max_steps = 675  # 25 epochs: 7,498 prompts, less 339 over the limit, are 27 batches of 256
batch_size = 256
mini_batch_size = 128
lr = 1e-6
lr_decay = False
adam_beta1 = 0.9
adam_beta2 = 0.999
weight_decay = 0.01
grad_clip = 1.0
entropy_coef = 1e-3  # in the paper's code, not in its text

eval_every = 25
eval_prompts = 500
save_every = 50
micro_batch_tokens = 8192
checkpoint_activations = True
engine_memory = 0.3
