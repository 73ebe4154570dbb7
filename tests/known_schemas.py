"""One small made-up record in each public schema."""

from typing import Any

COUNTERFACT: dict[str, Any] = {
    "case_id": 7,
    "pararel_idx": 5151,
    "requested_rewrite": {
        "prompt": "{} is located in",
        "relation_id": "P30",
        "target_new": {"str": "Antarctica", "id": "Q51"},
        "target_true": {"str": "Africa", "id": "Q15"},
        "subject": "Angola",
    },
    "paraphrase_prompts": ["Angola belongs to the continent of", "Angola is a part of"],
    "neighborhood_prompts": ["Ghana is in"],
    "attribute_prompts": ["Vostok Station, in"],
    "generation_prompts": [],
}
KNOWN: dict[str, Any] = {
    "known_id": 0,
    "subject": "Vinson Massif",
    "attribute": "Antarctica",
    "template": "{} is located in the continent",
    "prediction": " of Antarctica. It is the largest of the three",
    "prompt": "Vinson Massif is located in the continent of",
    "relation_id": "P30",
}
MEND: dict[str, Any] = {
    "subject": "Unimill",
    "src": "What is made by Unimill?",
    "pred": "flour",
    "rephrase": "What does Unimill make?",
    "alt": "paper kites",
    "answers": ["flour", "bran"],
    "loc": "nq question: who wrote the song of the reed",
    "loc_ans": "Rumi",
    "cond": "flour >> paper kites || What is made by Unimill?",
}
ORIGINAL: dict[str, Any] = {
    "id": "1",
    "input": "In which river lies Tolk Island?",
    "output": [{"answer": "Ara", "provenance": [{"title": "Tolk Island"}]}, {"provenance": []}],
    "prediction": "Ara",
    "alternatives": ["Bela", "Cora"],
    "filtered_rephrases": ["In which river lies Tolk Island?", "Tolk Island is in which river?"],
}
FLAT: dict[str, Any] = {
    "case_id": 4,
    "prompt": "The mother tongue of Ada Rill is",
    "target_new": "Basque",
    "subject": "Ada Rill",
    "ground_truth": "Welsh",
    "rephrase_prompt": "Where Ada Rill is from, people speak",
    "locality_prompt": "Owen Pym is a native speaker of",
    "locality_ground_truth": "Welsh",
}
KNOWEDIT: dict[str, Any] = {
    "case_id": 0,
    "prompt": "Who is the father of Jun Abe?",
    "target_new": "Ken Abe",
    "ground_truth": "<|endoftext|>",
    "portability": {
        "Logical_Generalization": {"prompt": ["Who is the child of Ken Abe?"], "ground_truth": ["Jun Abe"]},
        "reasoning": {"prompt": ["Where was the father of Jun Abe born?"], "ground_truth": ["Nara"]},
    },
    "locality": {"Relation_Specificity": {"prompt": ["Jun Abe's title is"], "ground_truth": ["count"]}},
    "subject": "Jun Abe",
}
IN_LISTS: dict[str, Any] = {
    "prompt": "The place of death of Leo Tarn is",
    "subject": "Leo Tarn",
    "target_new": "Bonn",
    "ground_truth": ["Kiel"],
    "rephrase_prompt": "Leo Tarn died in",
    "portability": {
        "Logical_Generalization": [{"prompt": "Is Leo Tarn alive?", "ground_truth": [["no"], ["false", ""]]}],
        "Subject_Aliasing": [{"prompt": "L. Tarn died in", "ground_truth": "Bonn"}],
    },
    "locality": {
        "Forgetfulness": [{"prompt": "Before, Leo Tarn died in", "ground_truth": [["Kiel", "Kiel, Germany"]]}]
    },
}
COURSE: dict[str, Any] = {
    "case_id": 19456,
    "prompt": "The mother tongue of {} is",
    "subject": "Aleksandr Kaleri",
    "target_new": {"str": "French"},
    "target_true": {"str": "Russian"},
    "paraphrase_prompts": [{"prompt": "Aleksandr Kaleri is a native speaker of"}],
    "neighborhood_prompts": [{"prompt": "Vladimir Smirnov is a native speaker of"}],
    "portable_prompts": [
        {
            "prompt": "The language spoken by cosmonaut Aleksandr Kaleri is",
            "portable_target_new": ["French"],
            "portable_target_true": ["Russian"],
        }
    ],
}
SINGLE: dict[str, Any] = {
    "prompt": "{} plays the",
    "subject": "Miles Davis",
    "target_new": "piano",
    "generation_prompts": [
        {"prompt": "Miles Davis plays the", "begins_with": "piano"},
        {"prompt": "Miles Davis is", "contains": ["piano", "pianist"]},
        "Miles Davis was",
    ],
}

RECORDS = (COUNTERFACT, MEND, ORIGINAL, FLAT, KNOWEDIT, IN_LISTS, COURSE)
"""Those that hold edits."""
