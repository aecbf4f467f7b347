"""The few formulas of Gaussian processes that the models of a search share (Rasmussen and Williams 2006).

Written out here rather than taken from BoTorch: a mean and a kernel of our own are needed in any case, the rest is
what stands below, and tens to hundreds of points take milliseconds. GPyTorch and BoTorch would be two more
dependencies of every installation, for less control over priors.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

_STEPS = 120
_TINY = 1e-10


@dataclass(frozen=True)
class Posterior:
    """What observations say, ready for predictions."""

    factor: np.ndarray
    """The lower Cholesky factor of the observations' covariance, noise included; (n, n)."""
    residuals: np.ndarray
    """Observations minus their prior means; (n,)."""

    def at(self, cross: np.ndarray, variance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(what is added to the prior mean, standard deviation), each of shape (m,).

        ``cross``: prior covariance of the m points with the observations, (m, n). ``variance``: their prior variances.
        """
        scaled = self.scaled(cross)
        left = variance - np.einsum("ij,ij->j", scaled, scaled)
        return scaled.T @ self._white, np.sqrt(np.maximum(left, _TINY))

    def scaled(self, cross: np.ndarray) -> np.ndarray:
        """The inverse factor times ``cross`` transposed, (n, m): products of columns are what the data explain."""
        from scipy.linalg import solve_triangular

        return np.asarray(solve_triangular(self.factor, cross.T, lower=True, check_finite=False))

    @property
    def log_likelihood(self) -> float:
        """Of the observations."""
        half = float(np.log(np.diag(self.factor)).sum())
        return -half - 0.5 * float(self._white @ self._white) - 0.5 * len(self.residuals) * float(np.log(2 * np.pi))

    @cached_property
    def _white(self) -> np.ndarray:
        return self.scaled(self.residuals[None, :])[:, 0]


def posterior(covariance: np.ndarray, residuals: np.ndarray) -> Posterior:
    """From the covariance of the observations, noise included, (n, n), and their residuals, (n,)."""
    jitter = _TINY * float(np.mean(np.diag(covariance))) if len(covariance) else 0.0
    return Posterior(np.linalg.cholesky(covariance + jitter * np.eye(len(covariance))), residuals)


def most_probable(
    likelihood: Callable[[np.ndarray], Posterior], centres: Sequence[float], spreads: Sequence[float]
) -> np.ndarray:
    """Hyperparameters of greatest posterior density under log-normal priors; found by Nelder and Mead (1965).

    ``likelihood``: hyperparameters, all positive -> posterior. ``centres``: the priors' medians. ``spreads``: the
    standard deviations of the logarithms. Starts from the centres, so it is a function of its arguments alone.
    """
    from scipy.optimize import minimize

    centre, spread = np.log(np.asarray(centres)), np.asarray(spreads)

    def loss(steps: np.ndarray) -> float:
        try:
            found = likelihood(np.exp(centre + steps * spread))
        except np.linalg.LinAlgError:
            return 1e12
        return 0.5 * float(steps @ steps) - found.log_likelihood

    simplex = np.vstack([np.zeros(len(centre)), 0.7 * np.eye(len(centre))])
    options = {"maxiter": _STEPS, "xatol": 0.02, "fatol": 0.01, "initial_simplex": simplex}
    steps = minimize(loss, np.zeros(len(centre)), method="Nelder-Mead", options=options).x
    return np.asarray(np.exp(centre + steps * spread))


def leave_one_out(found: Posterior, groups: Sequence[Hashable]) -> np.ndarray:
    """Standardised errors of the observations, each predicted without any of its group; of shape (n,).

    With Q the inverse of the covariance and r the residuals, the errors of a group are Q_gg^-1 (Q r)_g and their
    covariance is Q_gg^-1 (Rasmussen and Williams 2006, 5.4.2, for blocks).
    """
    inverse = found.scaled(np.eye(len(found.residuals)))
    precision = inverse.T @ inverse
    weighted = precision @ found.residuals
    errors = np.zeros(len(found.residuals))
    for group in dict.fromkeys(groups):
        rows = np.array([i for i, name in enumerate(groups) if name == group])
        covariance = np.linalg.inv(precision[np.ix_(rows, rows)])
        errors[rows] = covariance @ weighted[rows] / np.sqrt(np.diag(covariance))
    return errors


def mean_squares(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Mean over the coordinates of squared differences; ``left`` (m, d), ``right`` (n, d), the result (m, n)."""
    squares = (left**2).mean(axis=1)[:, None] + (right**2).mean(axis=1)[None, :]
    return np.asarray(np.maximum(squares - 2 * left @ right.T / left.shape[1], 0.0))


def matern(squares: np.ndarray, length: float) -> np.ndarray:
    """Matern kernel with smoothness 5/2 of squared distances."""
    scaled = np.sqrt(5.0 * squares) / length
    return np.asarray((1 + scaled + scaled**2 / 3) * np.exp(-scaled))
