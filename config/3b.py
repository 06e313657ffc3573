# Qwen2.5-3B on two GPUs of 80 GB or more, after the preset of a task. On one GPU add
# --gpu_memory_utilization=0.25: config/math.py config/3b.py --out=out/math_3b
model = "Qwen/Qwen2.5-3B"
gpu_memory_utilization = 0.35
