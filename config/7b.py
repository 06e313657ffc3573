# Qwen2.5-7B, after the preset of a task: config/math.py config/7b.py --out=out/math_7b
# For 4 GPUs of 80 GB, or one with --offload=True and 206 GB of host memory
# (python bench/estimate.py: what fits where).
model = "Qwen/Qwen2.5-7B"
gpu_memory_utilization = 0.4
