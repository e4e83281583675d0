"""Codes as hashes: packed bits, Hamming distances, and precision of the nearest (Section 5)."""

import numpy as np

QUERIES = 10_000  # at most, of a precision


def pack(codes: np.ndarray) -> np.ndarray:
    """Codes (N, b), true or false, as uint64 (N, b / 64 rounded up); what is left over is zero."""
    padded = np.zeros((len(codes), -(-codes.shape[1] // 64) * 64), bool)
    padded[:, : codes.shape[1]] = codes
    return np.packbits(padded, axis=1).view(np.uint64)


def unpack(packed: np.ndarray, bits: int) -> np.ndarray:
    """The codes, bool (N, bits), that were packed."""
    return np.unpackbits(packed.view(np.uint8), axis=1, count=bits).astype(bool)


def distances(packed: np.ndarray, code: np.ndarray) -> np.ndarray:
    """In how many bits each of N packed codes differs from one, uint16 (N,)."""
    return np.bitwise_count(packed ^ code).sum(1, dtype=np.uint16)


def precision_at(
    k: int, queries: np.ndarray, query_labels: np.ndarray, database: np.ndarray, labels: np.ndarray
) -> float:
    """Mean over queries, every n-th of more than 10,000, of the fraction of the k nearest documents
    with the query's label.

    queries (Q, ..) and database (N, ..) are packed codes. Of the documents as far away as the k-th,
    each is as likely to be among them: the expected value is taken.
    """
    k = min(k, len(database))

    def of_query(code: np.ndarray, label: int) -> float:
        distance, right = distances(database, code), labels == label
        kth = np.partition(distance, k - 1)[k - 1]
        closer, tied = distance < kth, distance == kth
        chance = (k - closer.sum()) / tied.sum()
        return (closer & right).sum() + (tied & right).sum() * chance

    some = slice(None, None, -(-len(queries) // QUERIES))
    pairs = zip(queries[some], query_labels[some], strict=True)
    found = np.array([of_query(*pair) for pair in pairs])
    # Some at a time, as committed results were summed: the last digit depends on it.
    parts = np.split(found, range(64, len(found), 64))
    return float(sum(part.sum() / k for part in parts) / len(found))
