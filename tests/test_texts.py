"""Own documents: folders, tables, and bad input; from files to search results."""

import json
import re
from pathlib import Path

import pytest
from toy import good, main, the_one_line

import hashing
from data import DataError, texts

SEA, LAND = "The whale and the Wave: Salz, écume 7.", "A hill, a tree; a whale of a tree."


def files(folder: Path, **changed: str | bytes) -> Path:
    for i in range(12):
        path = folder / ("sea" if i % 2 else "land") / f"{i}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{SEA if i % 2 else LAND}\nline {i}\n", encoding="utf-8")
    for name, text in changed.items():
        data = text.encode() if isinstance(text, str) else text
        (folder / f"{name}.txt").write_bytes(data)
    return folder


def test_a_folder_is_counted_and_split(tmp_path: Path) -> None:
    corpus = texts.load(files(tmp_path))
    assert corpus.groups == ["land", "sea"]
    titles = corpus.train_titles + corpus.test_titles
    assert sorted(titles) == sorted(f"{'sea' if i % 2 else 'land'}/{i}.txt" for i in range(12))
    row = corpus.train[[corpus.train_titles.index("sea/1.txt")]].toarray()[0]
    counts = dict(zip(corpus.words, row.tolist(), strict=True))
    assert {w: c for w, c in counts.items() if c} == dict.fromkeys(
        ["and", "line", "salz", "wave", "whale", "écume", "7", "1"], 1
    ) | {"the": 2}
    label = corpus.train_labels[corpus.train_titles.index("sea/1.txt")]
    assert corpus.groups[label] == "sea"
    again = texts.load(files(tmp_path))
    assert again.name == corpus.name
    assert texts.load(files(tmp_path, more="one more whale")).name != corpus.name


def test_folders_named_train_and_test_are_the_split(tmp_path: Path) -> None:
    files(tmp_path / "train")
    (tmp_path / "test" / "sea").mkdir(parents=True)
    (tmp_path / "test/sea/a.txt").write_text(SEA, encoding="utf-8")
    corpus = texts.load(tmp_path)
    assert (len(corpus.train_titles), corpus.test_titles) == (12, ["test/sea/a.txt"])
    (tmp_path / "README.txt").write_text(SEA, encoding="utf-8")
    with pytest.raises(DataError, match=r"README.txt is beside train/ and test/"):
        texts.load(tmp_path)
    assert corpus.groups == ["land", "sea"]


def test_tables_are_documents_too(tmp_path: Path) -> None:
    rows = [{"text": SEA if i % 2 else LAND, "group": str(i % 2)} for i in range(12)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "a.jsonl").write_text(lines + "\n", encoding="utf-8-sig")  # as Windows has it
    quoted = "".join(f'"{row["text"]}",{row["group"]}\n' for row in rows)
    (tmp_path / "a.CSV").write_text(f"text,group\n{quoted}", encoding="utf-8-sig")
    for name in ("a.jsonl", "a.CSV"):
        corpus = texts.load(tmp_path / name)
        assert corpus.groups == ["0", "1"]
        assert len(corpus.train_titles) + len(corpus.test_titles) == 12
    (tmp_path / "b.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match="with a column text"):
        texts.load(tmp_path / "b.jsonl")


def test_bad_folders_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no corpus"):
        texts.load(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"0 document"):
        texts.load(tmp_path)
    (tmp_path / "a.txt").write_text("alone")
    with pytest.raises(DataError, match=r"1 document"):
        texts.load(tmp_path)
    with pytest.raises(DataError, match="binary"):
        texts.load(files(tmp_path, binary=b"a\0b"))
    (tmp_path / "unlike").mkdir()
    for i in range(9):
        (tmp_path / "unlike" / f"{i}.txt").write_text("abcdefghi"[i])
    with pytest.raises(DataError, match="no word stands in two"):
        texts.load(tmp_path / "unlike")
    line = the_one_line(main(hashing, "--corpus", "docstring", "--out", tmp_path / "out"))
    assert "no corpus 'docstring'" in line


def test_what_is_no_utf8_is_read_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    texts.load(files(tmp_path, latin="écume".encode("latin-1")))
    assert "1 file(s) are no UTF-8" in capsys.readouterr().out


def test_from_files_to_search_results_and_the_same_again(tmp_path: Path) -> None:
    folder, out = files(tmp_path / "own"), tmp_path / "out"
    small = ("--bits", 4, "--epochs", 30, "--fine-epochs", 0, "--lr", 0.03, "--batch-size", 4)
    done = good(hashing, "--corpus", folder, *small, "--device", "cpu", "--out", out)
    assert len((out / "history.jsonl").read_text(encoding="utf-8").splitlines()) == 30
    found = good(hashing, "search", "écume", "whale", "--model", out / "model.pt", "--top", 3)
    shown = next(line for line in found.stdout.splitlines() if "The whale and the Wave" in line)
    assert re.search(r"^\d +sea +sea/\d+\.txt +The whale and the Wave: Salz, écume 7\.", shown)
    again = tmp_path / "again"
    done = good(hashing, "--like", out / "result.json", "--device", "cpu", "--out", again)
    assert "metrics are equal, bit by bit" in done.stdout
    changed = ("--lr", 0.05, "--device", "cpu", "--out", tmp_path / "other")
    done = main(hashing, "--like", out / "result.json", *changed)
    assert "metrics differ, most of all" in done.stdout
    wrong = main(hashing, "--like", folder / "sea/1.txt", "--out", tmp_path / "wrong")
    assert "is no result" in the_one_line(wrong)
