"""Other algorithms in the shape of train_apo.py, to be read beside it."""
