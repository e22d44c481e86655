"""What differs between the configurations of runs: one row a key, one column a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["differences", "flattened"]


def flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat |= flattened(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def differences(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Keys whose value is not the same in all runs, with the value of each run in order.

    Parameters
    ----------
    configs
        Configurations by name of the run.
    """
    flat = [flattened(config) for config in configs.values()]
    keys = dict.fromkeys(key for values in flat for key in values)
    rows = {key: [values.get(key) for values in flat] for key in keys}
    return {key: values for key, values in rows.items() if any(value != values[0] for value in values)}
