"""Encoding and chat rendering equal transformers' for a real tokenizer; BOS is never doubled; templates are contained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ingot.errors import ArtifactError, GenerateError
from ingot.runtime.chat import ChatTemplate
from ingot.runtime.tokenizer import Tokenizer

CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one turn": [{"role": "user", "content": "Hello, wörld! 東京 <|im_end|>"}],
    "several": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "  Hi\n"},
                {"role": "assistant", "content": "Yes?"}, {"role": "user", "content": "Why?"}],
    "none": [{"role": "user", "content": "x", "tool_calls": None}],
}


@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("prompt", [True, False])
def test_chat_equals_transformers(smollm2: Path, name: str, prompt: bool) -> None:
    from transformers import AutoTokenizer

    theirs, ours = AutoTokenizer.from_pretrained(smollm2), Tokenizer.open(smollm2)
    messages = CONVERSATIONS[name]
    text = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
    ids = theirs.apply_chat_template(messages, add_generation_prompt=prompt, return_dict=False)
    assert ours.render_chat(messages, add_generation_prompt=prompt) == text
    assert ours.encode_chat(messages, add_generation_prompt=prompt) == ids


@pytest.mark.parametrize("text", ["", "Hello", " leading", "naïve 東京 🙂\n\n\tx", "<|im_start|>user", "a<|endoftext|>b"])
def test_text_equals_transformers(smollm2: Path, text: str) -> None:
    from transformers import AutoTokenizer

    theirs, ours = AutoTokenizer.from_pretrained(smollm2), Tokenizer.open(smollm2)
    ids = theirs.encode(text)
    assert ours.encode(text) == ids
    assert ours.encode(text, add_special=False) == theirs.encode(text, add_special_tokens=False)
    for skip in (True, False):
        assert ours.decode(ids, skip_special=skip) == theirs.decode(ids, skip_special_tokens=skip)
    assert (ours.bos_id, ours.eos_id) == (theirs.bos_token_id, theirs.eos_token_id)


def test_templates_equal_transformers(smollm2: Path) -> None:
    """The features that models' templates use, rendered by both."""
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(smollm2)
    tools = [{"type": "function", "function": {"name": "f", "description": "a < b & 'c' é"}}]
    messages = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}, {"role": "user", "content": "three"}]
    templates = [
        "{{ bos_token }}{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}"
        "{{ m.content | trim }}{% break %}{% endfor %}",
        "  {% for m in messages %}\n  {{- m['role'] + ': ' + m['content'] }}\n  {% endfor %}\n"
        "{{ tools | tojson }} {{ tools | tojson(indent=2) }}",
        "{% set ns = namespace(found=false) %}{% for m in messages %}{% if m.role == 'assistant' %}{% set ns.found = true %}"
        "{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}{% endif %}{% endfor %}{{ ns.found }}",
        "{% macro say(m) %}[{{ m.content[::-1] }}]{% endmacro %}{{ say(messages[-1]) }}"
        "{{ strftime_now('%Y') | length }}{{ extra }}",
        "{{ 'A' if add_generation_prompt else 'B' }}{{ documents is none }}{{ unknown is defined }}"
        "{{ messages[0].get('name', '-') }}",
    ]
    for source in templates:
        expected = theirs.apply_chat_template(messages, tools=tools, chat_template=source, tokenize=False,
                                              add_generation_prompt=True, extra="x")
        ours = Tokenizer(Tokenizer.open(smollm2)._tokenizer, special=Tokenizer.open(smollm2).special, chat_template=source)
        assert ours.render_chat(messages, tools=tools, extra="x") == expected


def test_the_template_may_lie_in_any_of_three_places(toy: Path, tmp_path: Path) -> None:
    path = tmp_path / "toy"
    shutil.copytree(toy, path)
    config = json.loads((path / "tokenizer_config.json").read_text())
    messages = [{"role": "user", "content": "x"}]
    assert Tokenizer.open(path).render_chat(messages).startswith("<|im_start|>user\nx")
    config["chat_template"] = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "listed"}]
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    assert Tokenizer.open(path).render_chat(messages) == "listed"
    (path / "chat_template.jinja").write_text("file {{ bos_token }}{{ eos_token }}")
    assert Tokenizer.open(path).render_chat(messages) == "file <s></s>"


@pytest.mark.parametrize("family", ["byte-level", "sentencepiece"])
def test_bos_is_added_once(small_tokenizers: dict[str, Tokenizer], family: str) -> None:
    tokenizer = small_tokenizers[family]
    bos = tokenizer.bos_id
    plain, marked = tokenizer.encode("the"), tokenizer.encode("<s>the")
    assert plain[0] == bos
    assert plain[1] != bos
    assert marked[0] == bos
    assert marked[1] != bos
    assert tokenizer.encode("<s><s>the")[:3] == [bos, bos, tokenizer.encode("<s>the")[1]]
    assert bos not in tokenizer.encode("the", add_special=False)


def test_a_chat_gets_only_the_bos_its_template_writes(small_tokenizers: dict[str, Tokenizer]) -> None:
    base = small_tokenizers["byte-level"]
    messages = [{"role": "user", "content": "the"}]
    for source, count in (("{{ bos_token }}{{ messages[0].content }}", 1), ("{{ messages[0].content }}", 0)):
        tokenizer = Tokenizer(base._tokenizer, special=base.special, chat_template=source)
        assert tokenizer.encode_chat(messages).count(tokenizer.bos_id) == count


def test_padding_and_truncation_saved_with_a_tokenizer_are_off(small_tokenizers: dict[str, Tokenizer], tmp_path: Path) -> None:
    raw = type(small_tokenizers["byte-level"]._tokenizer).from_str(small_tokenizers["byte-level"]._tokenizer.to_str())
    raw.enable_truncation(4)
    raw.enable_padding(length=64)
    raw.save(str(tmp_path / "tokenizer.json"))
    assert len(Tokenizer.open(tmp_path).encode("x" * 20, add_special=False)) == 20


@pytest.mark.parametrize(("source", "message"), [
    ("{{ raise_exception('roles must alternate') }}", "refused the messages: roles must alternate"),
    ("{{ messages.append(1) }}", "refused the messages: .*unsafe"),
    ("{{ ''.__class__.__mro__ }}", "refused the messages: .*unsafe"),
    ("{{ strftime_now.__globals__.x }}", "refused the messages: .*unsafe"),
    ("{{ messages[0].content + 1 }}", "refused the messages: can only concatenate"),
    ("{{ missing.field }}", "refused the messages: 'missing' is undefined"),
])
def test_a_template_that_refuses_or_misbehaves_is_one_clear_error(source: str, message: str) -> None:
    with pytest.raises(GenerateError, match=message):
        ChatTemplate(source).render([{"role": "user", "content": "x"}])


def test_a_template_that_does_not_compile() -> None:
    with pytest.raises(GenerateError, match="chat template does not compile"):
        ChatTemplate("{% for %}")


@pytest.mark.parametrize(("messages", "message"), [([], "no message"), ([{"role": "user", "content": b"x"}], "plain JSON")])
def test_messages_must_be_plain(messages: list[dict[str, object]], message: str) -> None:
    with pytest.raises(GenerateError, match=message):
        ChatTemplate("x").render(messages)


@pytest.mark.parametrize(("spoil", "message"), [
    (lambda path: (path / "tokenizer.json").unlink(), "there is no tokenizer.json"),
    (lambda path: (path / "tokenizer.json").write_text("{"), "the tokenizer cannot be read"),
    (lambda path: (path / "tokenizer_config.json").write_text("{"), "tokenizer_config.json: the file cannot be read"),
])
def test_damaged_files(toy: Path, tmp_path: Path, spoil: Callable[[Path], object], message: str) -> None:
    path = tmp_path / "toy"
    shutil.copytree(toy, path)
    spoil(path)
    with pytest.raises(ArtifactError, match=message):
        Tokenizer.open(path)


def test_a_model_without_a_template(small_tokenizers: dict[str, Tokenizer]) -> None:
    with pytest.raises(GenerateError, match="has no chat template"):
        small_tokenizers["metaspace"].render_chat([{"role": "user", "content": "x"}])
