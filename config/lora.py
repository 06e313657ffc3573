# Train low-rank adapters instead of all weights, after a task's preset: a quarter of the memory.
# They need about ten times the learning rate ("LoRA Without Regret", Thinking Machines, 2025).
lora_rank = 32
lora_alpha = 32.0
lr = 1e-5
