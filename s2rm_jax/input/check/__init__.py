"""The data check: examine annotations, masks and images of REFER datasets before training."""
