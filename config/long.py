# The paper's second set of experiments, responses of up to 16,384 tokens, after config/math.py:
#   torchrun --standalone --nproc_per_node=8 estimate_value.py config/math.py config/long.py
#   torchrun --standalone --nproc_per_node=8 train_apo.py config/math.py config/long.py
# Not run on GPUs yet.
model = "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"
out = "out/math_long"
chat_template = True
max_response_tokens = 16384
filter_incorrect = True  # leave out the prompts that the reference never solved
checkpoint_activations = True
