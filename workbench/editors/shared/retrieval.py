"""Retrieval: how near texts are to one text, by TF-IDF or by sentence embeddings."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

Retrieval = str | Callable[[Sequence[str]], Any]
"""Which embeddings texts are compared by: "tfidf", the name of a model for `sentence-transformers`, or a function that
gives one row a text."""


def nearest(texts: Sequence[str], query: str, retrieval: Retrieval, *, count: int) -> list[int]:
    """Places of the texts that are nearest to the query, the nearest first; of equally near ones, the earlier first."""
    return np.argsort(-similarities(texts, query, retrieval), kind="stable")[:count].tolist()


def similarities(texts: Sequence[str], query: str, retrieval: Retrieval) -> Float[np.ndarray, " texts"]:
    """Cosines of the texts with the query; for TF-IDF words are weighted by how few of the texts have them.

    ValueError for a model of `sentence-transformers` where that package is not installed.
    """
    if retrieval == "tfidf":
        from sklearn.feature_extraction.text import TfidfVectorizer

        vectoriser = TfidfVectorizer().fit(texts)  # its rows are of length 1
        return (vectoriser.transform(texts) @ vectoriser.transform([query]).T).toarray()[:, 0]
    embed = _sentence_transformer(retrieval) if isinstance(retrieval, str) else retrieval
    rows, (row,) = (np.asarray(embed(some), dtype=np.float64) for some in (texts, [query]))
    lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(row)
    return rows @ row / np.where(lengths > 0, lengths, 1.0)


def _sentence_transformer(name: str) -> Callable[[Sequence[str]], Any]:
    try:
        from sentence_transformers import SentenceTransformer  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError(
            f"retrieval by {name!r} needs the package sentence-transformers: pip install sentence-transformers, or "
            'retrieve by "tfidf"'
        ) from None
    return SentenceTransformer(name).encode
