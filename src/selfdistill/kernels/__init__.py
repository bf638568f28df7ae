"""Fast versions of scoring and objective, behind the same values and gradients."""
