"""Which editor writes facts best? All of them on the same records, one edit at a time: the paper's main table.

    python analyses/compare_editors.py                         # every editor, 200 evaluation records of atlas
    python analyses/compare_editors.py --methods rome,memit --limit 500
    python analyses/compare_editors.py --model gpt2-xl --records counterfact.json --methods ft_l,rome,memit

Every record is edited alone: the edit is made, applied, scored and taken back, and the fingerprint of the weights is
compared with that of the untouched model. Scores are CounterFact's, teacher-forced, with bootstrap 95 % intervals over
records (Meng et al. 2022, table 4); fluency is measured on the first --fluency records only, because sampling takes
most of the time. Bold is the best of a column and each editor whose interval reaches it. The tables of the ROME and
MEMIT papers are printed beside it: other models, other records.

Then the methods of --stacked write the first --edits records as one batch, and these are scored with all of them kept;
prompts whose right answer another of these edits changes are left out. The bars of the embedded model are printed.

A run that is stopped goes on after the last record, when the same command is given again; so does one with other
--methods, or with a --limit that takes in more records.
"""

from workbench.cli.comparing import compare as main
from workbench.cli.session import script

if __name__ == "__main__":
    script(main, __file__, __doc__)
