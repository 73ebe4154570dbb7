"""Causal tracing (Meng et al. 2022, section 2): where in a model a fact is recalled.

`noise` and `replacement` say how the subject is corrupted, `positions` which tokens are traced, `cells` what a
restored run changes, `measure` what is measured. `fact` traces one fact by the engine `fast` or its oracle `plain`,
`attribution` estimates the same from gradients. `sweep` traces many facts, `trace` is what comes out, `averages` reads
the mediating layer from many traces. `lens` reads the way to the answer.
"""
