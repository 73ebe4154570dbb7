"""Which Ray cluster `auto` is, and the token by which it is joined."""

import contextlib
import os


def running() -> str:
    """The address of the cluster that RAY_ADDRESS names or that runs here; "local" for one that is to be started.

    Not what Ray would take by itself: the address of the last one that was started, which may have been killed. As Ray
    does, one that runs here is joined by the token that lies here, where there is one: `ray start` asks for it then.
    """
    from ray._private.services import find_gcs_addresses

    if named := os.environ.get("RAY_ADDRESS"):
        return named
    here = sorted(find_gcs_addresses())
    if not here:
        return "local"
    with contextlib.suppress(ImportError):  # older releases of Ray ask for none
        from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available

        maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    return here[0]
