"""Documents of text files: plain ones, JSON lines of texts and conversations, and what is neither."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers

from ingot.errors import GenerateError
from ingot.runtime.documents import token_ids
from ingot.runtime.tokenizer import Tokenizer
from tests.runtime.conftest import CHATML, byte_level_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(byte_level_tokenizer(), special={"bos_token": "<s>", "eos_token": "</s>"}, chat_template=CHATML)


def lines(file: Path, *entries: object) -> Path:
    file.write_text("".join(f"{json.dumps(e)}\n" for e in entries), encoding="utf-8")
    return file


def test_a_text_is_one_document(tmp_path: Path, tokenizer: Tokenizer) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes("\ufeffthe lazy dog\r\nthe quick fox".encode())
    assert token_ids(file, tokenizer) == tokenizer.encode("the lazy dog\nthe quick fox", add_special=False)
    file.write_text(" \n\n")
    assert token_ids(file, tokenizer) == []


def test_json_lines_are_documents_between_end_tokens(tmp_path: Path, tokenizer: Tokenizer) -> None:
    messages = [{"role": "user", "content": "the fox"}, {"role": "assistant", "content": "the dog"}]
    file = lines(tmp_path / "a.jsonl", {"text": "the lazy dog", "id": 7}, "brown fox", {"messages": messages})
    file.write_text(file.read_text() + "\n\n")
    end = tokenizer.eos_id
    chat = tokenizer.encode("<|im_start|>user\nthe fox<|im_end|>\n<|im_start|>assistant\nthe dog<|im_end|>\n", add_special=False)
    assert token_ids(file, tokenizer) == [*tokenizer.encode("the lazy dog", add_special=False), end,
                                          *tokenizer.encode("brown fox", add_special=False), end, *chat]


def test_no_more_is_read_than_is_wanted(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """A file may be far longer than what is used of it; what is cut off there is no error."""
    long = tmp_path / "long.txt"
    long.write_text("ü the lazy dog " * 1000, encoding="utf-8")
    assert 10 <= len(token_ids(long, tokenizer, most=10)) < 500
    file = lines(tmp_path / "a.jsonl", *["the lazy dog"] * 1000)
    few = token_ids(file, tokenizer, most=10)
    assert 10 <= len(few) < 500
    assert few == token_ids(file, tokenizer)[: len(few)]


@pytest.mark.parametrize(("entry", "message", "where"), [
    ('{"text": 3}', "holds no text", ":2"),
    ('["the fox"]', "holds no text", ":2"),
    ('{"messages": "the fox"}', "holds no text", ":2"),
    ('{"messages": []}', "no message", ":2"),
    ("the fox", "not JSON", ":2"),
    ("[" * 100_000, "not JSON", ":2"),
])
def test_a_line_that_holds_none(tmp_path: Path, tokenizer: Tokenizer, entry: str, message: str, where: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(f'"the fox"\n{entry}\n"the dog"\n')
    with pytest.raises(GenerateError, match=message) as caught:
        token_ids(file, tokenizer)
    assert str(caught.value.where).endswith(where)


def test_conversations_need_a_template(tmp_path: Path) -> None:
    plain = Tokenizer(byte_level_tokenizer())
    with pytest.raises(GenerateError, match="no chat template") as caught:
        token_ids(lines(tmp_path / "a.jsonl", {"messages": [{"role": "user", "content": "x"}]}), plain)
    assert str(caught.value.where).endswith("a.jsonl:1")


def test_a_text_of_another_tokenizer(tmp_path: Path) -> None:
    words = tokenizers.models.WordLevel({"[UNK]": 0, "the": 1, "fox": 2}, unk_token="[UNK]")
    inner = tokenizers.Tokenizer(words)
    inner.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    known = Tokenizer(inner, special={"unk_token": "[UNK]"})
    file = tmp_path / "a.txt"
    file.write_text("the fox the dog")
    assert token_ids(file, known) == [1, 2, 1, 0]
    file.write_text("der Fuchs der Hund the fox")
    with pytest.raises(GenerateError, match="67% of the text is unknown"):
        token_ids(file, known)


def test_what_is_no_text(tmp_path: Path, tokenizer: Tokenizer) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"text": "\xff\xfe"}\n')
    with pytest.raises(GenerateError, match="not UTF-8"):
        token_ids(file, tokenizer)
