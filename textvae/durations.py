"""Durations as recipes write them: steps or epochs."""

from __future__ import annotations

LARGEST = 2**53  # of any whole number; beyond it a float no longer holds each one


def parse_duration(value: str | int) -> tuple[float, str]:
    """Returns (amount, "steps" or "epochs") of 500, "500 steps" or "1.5 epochs".

    Raises:
        ValueError: anything else, or an amount that is not above 0.
    """
    if isinstance(value, int):
        amount, unit = float(value), "steps"
    else:
        parts = value.split()
        try:
            amount, unit = float(parts[0]), parts[1] if len(parts) == 2 else "steps"
        except (ValueError, IndexError):
            amount, unit = -1.0, ""
        unit = {"step": "steps", "epoch": "epochs"}.get(unit, unit)
        amount = -1.0 if len(parts) > 2 or unit not in ("steps", "epochs") else amount
    if not 0 < amount <= LARGEST:
        raise ValueError(f"got {value!r}; a duration is a number of steps (500) or text such as '10 epochs'")
    return amount, unit
