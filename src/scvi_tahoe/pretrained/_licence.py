"""The licence of Arc's weights: shown, and accepted by an argument or an environment variable before a download."""

from __future__ import annotations

import os
import warnings

from scvi_tahoe.pretrained._model_card import LICENCE_SUMMARY

__all__ = ["ACCEPT_VARIABLE", "LicenceNotAcceptedError", "LicenceWarning", "verify_licence"]

#: Environment variable that accepts the licence of downloaded weights.
ACCEPT_VARIABLE = "SCVI_TAHOE_ACCEPT_LICENSE"


class LicenceNotAcceptedError(RuntimeError):
    """Weights under a licence with conditions were asked for, and nobody accepted it."""


class LicenceWarning(UserWarning):
    """Shows the licence of weights, once."""


def verify_licence(source: str, accept: bool | None = None) -> None:
    """Show the licence of downloaded weights; refuse to go on where it was not accepted.

    Parameters
    ----------
    source
        Whose weights.
    accept
        The user's word; ``None``: what the environment variable ``SCVI_TAHOE_ACCEPT_LICENSE`` says.

    Raises
    ------
    LicenceNotAcceptedError
        If neither accepts.
    """
    if accept is None:
        accept = os.environ.get(ACCEPT_VARIABLE, "").strip().lower() in ("1", "true", "yes")
    if not accept:
        raise LicenceNotAcceptedError(
            f"{source}: {LICENCE_SUMMARY} To accept, pass accept_license=True or set {ACCEPT_VARIABLE}=1."
        )
    warnings.warn(f"{source}: {LICENCE_SUMMARY}", LicenceWarning, stacklevel=3)
