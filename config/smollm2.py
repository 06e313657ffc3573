# SmolLM2-135M-Instruct on the task of tasks/instructions.py, for every stage: bash runs/smollm2.sh
task = "instructions"
model = "HuggingFaceTB/SmolLM2-135M-Instruct"
chat_template = True
dtype = "bfloat16"

max_prompts = 320         # of stage 1, and so of training
samples_per_prompt = 4
max_response_tokens = 48

max_steps = 50
batch_size = 64
mini_batch_size = 32      # two updates a step
lr = 4e-5
eval_every = 25
eval_prompts = 128
save_every = 10
