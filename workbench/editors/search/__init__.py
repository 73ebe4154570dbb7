"""The search for the value that an edit writes: the plain one is the oracle of the fast one."""
