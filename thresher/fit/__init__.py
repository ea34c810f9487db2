"""Training what a method must learn: `fastforward` makes FastForward's predictors and compensators for a model."""

from thresher.fit.run import Progress, fastforward

__all__ = ["Progress", "fastforward"]
