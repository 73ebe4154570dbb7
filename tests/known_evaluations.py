"""Evaluations whose scores are known."""

import math

from workbench.measuring.scores import KINDS, Evaluation, PromptScores, RecordScores


def evaluation(case_id: int, *, worked: bool = True) -> Evaluation:
    """A record with a prompt of each kind: an edit that worked has an S of 100 %, one that did not of 0 %."""

    def state(p_new: float) -> RecordScores:
        prompts = {}
        for kind in KINDS:
            p = 1 - p_new if kind == "neighborhood" and worked else p_new
            scores = PromptScores(
                prompt="?",
                targets_new=("new",),
                targets_true=("true",),
                p_new=p,
                p_true=1 - p,
                top_new=p > 0.5,
                top_true=p < 0.5,
                generated=None,
            )
            prompts[kind] = (scores,)
        return RecordScores(prompts=prompts)

    after = state(0.9 if worked else 0.1)
    return Evaluation(case_id=case_id, pre=state(0.1), post=after, kl=math.nan, relative_norms={}, seconds=0.0)
