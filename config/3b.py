# Qwen2.5-3B, after the preset of a task: config/math.py config/3b.py --out=out/math_3b
# It is for two GPUs of 80 GB or more. On one, add --gpu_memory_utilization=0.25.
model = "Qwen/Qwen2.5-3B"
gpu_memory_utilization = 0.35
