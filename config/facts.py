# The task of tasks/facts.py, for every stage and baseline.
task = "facts"
model = "data/facts/model"

max_steps = 64
lr = 2e-4
critic_lr = 2e-3
eval_every = 8
