# Qwen2.5-1.5B base on MATH with the settings of the A*-PO paper's repository, for every stage:
#   python prepare.py --task=math
#   torchrun --standalone --nproc_per_node=4 estimate_value.py config/math.py
#   torchrun --standalone --nproc_per_node=4 train_apo.py config/math.py
#   torchrun --standalone --nproc_per_node=4 evaluate.py config/math.py \
#       --model=Qwen/Qwen2.5-1.5B,out/math/model
# Another size: config/math.py config/7b.py --out=out/math_7b
task = "math"
model = "Qwen/Qwen2.5-1.5B"
dtype = "bfloat16"

max_prompt_tokens = 256  # longer prompts are left out of training
max_response_tokens = 1024
temperature = 1.0

samples_per_prompt = 8
beta1 = 0.5
beta2 = 1e-3

max_steps = 675  # 25 epochs: 7,498 prompts, less 339 that are too long, are 27 batches of 256
batch_size = 256
mini_batch_size = 128
lr = 1e-6
critic_lr = 1e-5  # PPO's
lr_decay = False
weight_decay = 0.01
grad_clip = 1.0
entropy_coef = 1e-3  # in the paper's code, not in its text

eval_every = 25
eval_prompts = 500
save_every = 50
compile = True
