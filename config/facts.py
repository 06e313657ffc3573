# The task of examples/facts.py, for every stage.
task = "examples/facts.py"
model = "data/facts/model"
max_steps = 96
lr = 1e-4
eval_every = 8
