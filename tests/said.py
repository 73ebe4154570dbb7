"""What a sentence tells, whatever its words."""

import re


def numbers(text: str) -> list[float]:
    """Those that it tells, with their signs; the ends of 70-90 are two."""
    return [float(number) for number in re.findall(r"(?<![\d.])[-+]?\d+(?:\.\d+)?", text)]
