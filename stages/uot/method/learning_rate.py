"""The step schedule of fine-tuning (card, "Step 5"): x 0.1 at 60 % and again at 80 % of the training."""

MILESTONES = (0.6, 0.8)


def step_factor(step: int, steps: int) -> float:
    """What multiplies the base rate at `step` of `steps` (or at an epoch of as many epochs)."""
    return 0.1 ** sum(step >= round(milestone * steps) for milestone in MILESTONES)
