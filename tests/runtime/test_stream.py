"""Streamed text is exactly the full decoding, whatever the tokens; stop strings never show, not even in part."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingot.runtime.stream import Detokenizer, StopFinder
from ingot.runtime.tokenizer import Tokenizer

FAMILIES = ["byte-level", "sentencepiece", "metaspace", "wordpiece"]


def streamed(tokenizer: Tokenizer, ids: list[int], **options: object) -> tuple[list[str], str]:
    """The pieces before the end, and the last one."""
    detokenizer = Detokenizer(tokenizer, **options)
    return [detokenizer.push(token) for token in ids], detokenizer.finish()


@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_random_tokens(small_tokenizers: dict[str, Tokenizer], family: str, data: st.DataObject) -> None:
    tokenizer = small_tokenizers[family]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 1), max_size=30))
    skip = data.draw(st.booleans())
    pieces, last = streamed(tokenizer, ids, skip_special=skip)
    assert "".join(pieces) + last == tokenizer.decode(ids, skip_special=skip)


@pytest.mark.parametrize("family", FAMILIES)
@given(text=st.text(max_size=30))
@settings(max_examples=100, deadline=None)
def test_random_text_shows_no_broken_character_on_the_way(small_tokenizers: dict[str, Tokenizer], family: str, text: str) -> None:
    tokenizer = small_tokenizers[family]
    ids = tokenizer.encode(text.replace("\ufffd", ""))
    pieces, last = streamed(tokenizer, ids)
    assert "".join(pieces) + last == tokenizer.decode(ids)
    assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_continuing_a_prompt_gives_what_both_together_add(
        small_tokenizers: dict[str, Tokenizer], family: str, data: st.DataObject) -> None:
    """After a prompt that ends in a byte token only valid text follows: bad bytes would change the prompt's own text."""
    tokenizer = small_tokenizers[family]
    prompt = tokenizer.encode(data.draw(st.sampled_from(["the play", "t h e", "the the.", "x the"])))
    if (tokenizer.token_text(prompt[-1]) or "").startswith("<0x"):
        ids = tokenizer.encode(data.draw(st.text(max_size=9)), add_special=False)
    else:
        ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=20))
    before = tokenizer.decode(prompt)
    pieces, last = streamed(tokenizer, ids, context=prompt)
    assert before + "".join(pieces) + last == tokenizer.decode(prompt + ids)


def test_a_continuation_keeps_the_space_that_a_beginning_loses(small_tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = small_tokenizers["sentencepiece"]
    the = tokenizer.token_id("▁the")
    assert the is not None
    assert streamed(tokenizer, [the, the])[0] == ["the", " the"]
    assert streamed(tokenizer, [the, the], context=[the])[0] == [" the", " the"]


def test_a_character_of_several_tokens_comes_whole(small_tokenizers: dict[str, Tokenizer]) -> None:
    for family in ("byte-level", "sentencepiece"):
        tokenizer = small_tokenizers[family]
        pieces, last = streamed(tokenizer, tokenizer.encode("the \U0001f98a the"))
        assert "".join(pieces) + last == "the \U0001f98a the"
        assert all("\U0001f98a" in piece or not set(piece) - set("the ") for piece in [*pieces, last])


def test_text_comes_at_once_where_nothing_can_change(small_tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = small_tokenizers["byte-level"]
    ids = tokenizer.encode("the quick brown fox", add_special=False)
    pieces, last = streamed(tokenizer, ids)
    assert all(pieces)
    assert last == ""


def test_a_real_tokenizer(smollm2: Path) -> None:
    tokenizer = Tokenizer.open(smollm2)
    text = "Ça va? 東京は今日も晴れ. 🦊🏳️‍🌈 def f(x):\n    return x  # done\n\n<|im_end|>"
    ids = tokenizer.encode(text)
    for skip in (True, False):
        pieces, last = streamed(tokenizer, ids, skip_special=skip)
        assert "".join(pieces) + last == tokenizer.decode(ids, skip_special=skip)


def reference_stop(text: str, stops: list[str]) -> tuple[str, str | None]:
    """Character by character: ends where the first stop string is complete, the longest if several are."""
    for end in range(len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            stop = max(found, key=len)
            return text[: end - len(stop)], stop
    return text, None


@given(pieces=st.lists(st.text("ab\n", max_size=4), max_size=12),
       stops=st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3))
@settings(max_examples=500, deadline=None)
def test_stop_strings_across_pieces(pieces: list[str], stops: list[str]) -> None:
    finder = StopFinder(stops)
    shown = ""
    text, stop = reference_stop("".join(pieces), stops)
    for piece in pieces:
        shown += finder.push(piece)
        assert text.startswith(shown)
    shown += finder.finish()
    assert (shown, finder.found) == (text, stop)


def test_what_cannot_be_a_stop_string_is_not_held_back() -> None:
    finder = StopFinder(["\n\nUser:"])
    assert [finder.push(piece) for piece in ("Hi", "\n", "\nUs", "e", "d", "\n\nUser", ": x", "more")] == [
        "Hi", "", "", "", "\n\nUsed", "", "", ""]
    assert finder.found == "\n\nUser:"
    assert finder.finish() == ""
