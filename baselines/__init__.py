"""Other algorithms with the loop of train_apo.py, to be read beside it. Each takes its start-up and
the constants that are not its own from there."""
