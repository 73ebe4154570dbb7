"""Which tokens of a prompt are traced."""

from collections.abc import Sequence

POSITIONS = ("all", "last_subject", "roles")
"""Sets of tokens that have a name."""

Positions = str | Sequence[int]
"""What `traced_positions` takes."""


def parse_positions(positions: Positions) -> str | tuple[int, ...]:
    """A name of `POSITIONS`, or indices, which may be written "3,7"; ValueError for anything else."""
    if isinstance(positions, str) and positions not in POSITIONS:
        try:
            positions = [int(part) for part in positions.split(",")]
        except ValueError:
            raise ValueError(
                f"positions must be {', '.join(POSITIONS)}, or indices of tokens such as 3,7, got {positions!r}"
            ) from None
    if not positions:
        raise ValueError("positions must name at least one token, got none")
    return positions if isinstance(positions, str) else tuple(positions)


def traced_positions(positions: Positions, *, n_tokens: int, subject: tuple[int, int]) -> tuple[int, ...]:
    """The tokens that `positions` means in a prompt, ascending.

    Args:
        positions: "all"; "last_subject", the subject's last token; "roles", those that have a role (`token_roles`),
            which are all from the subject on, so that averages by role are those of a whole trace; or indices as the
            trace counts tokens, a BOS included, negative ones from the prompt's end.
        subject: the subject's tokens, [first, end).

    ValueError for another name and for a token that the prompt does not have.
    """
    chosen = parse_positions(positions)
    if isinstance(chosen, str):
        first, end = subject
        return {
            "all": tuple(range(n_tokens)),
            "last_subject": (end - 1,),
            "roles": tuple(range(first, n_tokens)),
        }[chosen]
    outside = [pos for pos in chosen if not -n_tokens <= pos < n_tokens]
    if outside:
        raise ValueError(f"position {outside[0]} is not in a prompt of {n_tokens} tokens, 0 to {n_tokens - 1}")
    return tuple(sorted({pos % n_tokens for pos in chosen}))
