"""The command `check`: find faults in the data, the objective and the models of a run before training."""
