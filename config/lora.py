# Train low-rank adapters instead of all weights, after config/math.py or config/gsm8k.py: a quarter
# of the memory. Adapters need about ten times the learning rate of all weights ("LoRA Without
# Regret", Thinking Machines, 2025): with another task's preset, set --lr to that.
lora_rank = 32
lora_alpha = 32.0
lr = 1e-5
critic_lr = 1e-4  # PPO's
