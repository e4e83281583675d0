"""Codes as hashes: packing, distances, precision against a plain count, and the search command."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from toy import corpus, good, main, the_one_line

import hashing
from data import documents, hamming, newsgroups

ARGUMENTS = ("--bits", 6, "--epochs", 30, "--fine-epochs", 0, "--lr", 0.05, "--batch-size", 16)
ARGUMENTS = (*ARGUMENTS, "--device", "cpu")


@pytest.mark.parametrize("k", [1, 5, 40, 100])
def test_precision_equals_a_plain_count(k: int) -> None:
    """All documents sorted, ties in random order, many times, by hand; without ties, exactly."""
    rng = np.random.default_rng(0)
    queries, database = rng.integers(2, size=(6, 5)), rng.integers(2, size=(50, 5))
    query_labels, labels = rng.integers(3, size=6), rng.integers(3, size=50)
    packed = hamming.pack(queries), hamming.pack(database)
    found = hamming.precision_at(k, packed[0], query_labels, packed[1], labels)
    counted = []
    for _ in range(600):
        for query, label in zip(queries, query_labels, strict=True):
            distance = [
                sum(x != y for x, y in zip(query, document, strict=True)) for document in database
            ]
            nearest = sorted(range(50), key=lambda i: (distance[i], rng.random()))[:k]
            counted.append(sum(labels[i] == label for i in nearest) / min(k, 50))
    error = np.std(counted) / len(counted) ** 0.5
    assert found == pytest.approx(np.mean(counted), abs=4 * error + 1e-12)


def test_precision_of_some_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every third of more than are allowed."""
    rng = np.random.default_rng(0)
    queries, database = hamming.pack(rng.random((10, 8)) < 0.5), hamming.pack(np.eye(8))
    labels, query_labels = rng.integers(2, size=8), rng.integers(2, size=10)
    expected = hamming.precision_at(3, queries[::3], query_labels[::3], database, labels)
    monkeypatch.setattr(hamming, "QUERIES", 4)
    assert hamming.precision_at(3, queries, query_labels, database, labels) == expected


@pytest.mark.parametrize("bits", [1, 8, 63, 64, 65, 130])
def test_packed_codes_have_the_distances_of_their_bits(bits: int) -> None:
    codes = np.random.default_rng(bits).random((40, bits)) < 0.5
    packed = hamming.pack(codes)
    assert (hamming.unpack(packed, bits) == codes).all()
    for i in (0, 39):
        assert (hamming.distances(packed, packed[i]) == (codes != codes[i]).sum(1)).all()


def test_characteristic_words_are_those_of_largest_tf_idf(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "BLOCK", 7)
    toy = corpus()
    train, test = toy.train.toarray(), toy.test.toarray()
    weight = np.concatenate([train, test]) * np.log(50 / np.maximum(1, (train > 0).sum(0)))
    for found, row in zip(documents.characteristic_words(toy.train, toy.test), weight, strict=True):
        largest = sorted(np.flatnonzero(row), key=lambda j: -row[j])[:6]
        assert row[found[found >= 0]] == pytest.approx(row[largest])
        assert (found >= 0).sum() == len(largest)


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(newsgroups, "load", lambda archive: corpus())
    good(hashing, *ARGUMENTS, "--out", tmp_path)
    return tmp_path / "model.pt"


def test_search(trained: Path) -> None:
    done = good(hashing, "search", "Word3, word4 and flibbertigibbet", "--top 4 --model", trained)
    assert "not among the 30 words: and flibbertigibbet" in done.stdout
    lines = [line for line in done.stdout.splitlines() if "document " in line and line[0].isdigit()]
    assert len(lines) == 4
    distances = [int(line.split()[0]) for line in lines]
    assert distances == sorted(distances)


def test_searching_finds_the_nearest_codes(trained: Path) -> None:
    toy = corpus()
    saved = torch.load(trained, weights_only=True)
    weight, bias = saved["model"]["encoder.weight"], saved["model"]["encoder.bias"]
    counts = np.concatenate([toy.train.toarray(), toy.test.toarray()])
    codes = (counts + saved["u"].numpy()) @ weight.numpy() + bias.numpy() > 0
    longest = counts.sum(1).argmax()
    words = [f"word{i}" for i in np.repeat(np.arange(30), counts[longest].astype(int))]
    done = main(hashing, "search", *words, "--top", 80, "--model", trained)
    shown = [int(line.split()[0]) for line in done.stdout.splitlines() if line[:1].isdigit()][:71]
    assert shown == sorted((codes != codes[longest]).sum(1))


def test_a_model_trained_before_the_list_of_words_came(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is finished, resumed, takes the names."""
    named = replace(corpus(), words=[f"name{i}" for i in range(30)])
    monkeypatch.setattr(newsgroups, "load", lambda archive: named)
    good(hashing, "--resume", *ARGUMENTS, "--out", trained.parent)
    done = good(hashing, "search", "name3", "name4", "--model", trained)
    assert "30 words" not in done.stdout


def test_the_corpus_is_not_read_again(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashing, "load_corpus", lambda *_: pytest.fail("read"))
    good(hashing, "search", "word3", "--model", trained)


def test_codes_that_tell_nothing_apart_are_said(trained: Path) -> None:
    state = torch.load(trained, weights_only=True)
    torch.save(state | {"codes": torch.zeros_like(state["codes"])}, trained)
    done = main(hashing, "search", "word3", "--top", 5, "--model", trained)
    assert "71 documents are as near as the last" in done.stdout


def test_bad_searches_are_one_line(trained: Path, tmp_path: Path) -> None:
    def error(*arguments: object) -> str:
        return the_one_line(main(hashing, "search", *arguments))

    assert "no word of the query" in error("flibbertigibbet", "--model", trained)
    assert "no words" in error("--model", trained)
    assert "no model of hashing.py at" in error("word3", "--model", tmp_path / "none.pt")
    (tmp_path / "bad.pt").write_bytes(trained.read_bytes()[:500])
    assert "is no model of hashing.py" in error("word3", "--model", tmp_path / "bad.pt")
    assert "is no model of hashing.py" in error("word3", "--model", tmp_path / "checkpoint.pt")
