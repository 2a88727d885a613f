"""Rendering chat messages through a model's Jinja template.

A template comes with the model, so it is untrusted: it runs in Jinja's immutable sandbox, sees plain JSON values
only, and has the few functions that templates written for transformers expect.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ingot.errors import GenerateError

Message = Mapping[str, Any]
"""A chat message: role, content, and whatever else the template reads."""


class ChatTemplate:
    """A compiled chat template."""

    def __init__(self, source: str) -> None:
        """source: the Jinja text; GenerateError when it does not compile."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, "jinja2.ext.loopcontrols"])
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda text: datetime.now().strftime(text)
        try:
            self._template = environment.from_string(source)
        except Exception as error:  # Jinja compiles to Python, where deep nesting fails in several ways
            raise GenerateError(f"the chat template does not compile: {error}") from error

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True,
               tools: Sequence[Mapping[str, Any]] | None = None, **variables: Any) -> str:
        """The prompt text of a conversation.

        add_generation_prompt: end with the header of the assistant's turn. tools: JSON schemas of functions.
        variables: what else the template may read (bos_token, enable_thinking, ...).
        GenerateError when the messages are not plain data or the template refuses them.
        """
        if not messages:
            raise GenerateError("there is no message to render", hint="give at least one, with role and content")
        try:
            plain = json.loads(json.dumps({"messages": [dict(message) for message in messages],
                                           "tools": None if tools is None else list(tools), **variables}))
        except (TypeError, ValueError) as error:
            raise GenerateError(f"chat messages must be plain JSON values: {error}") from error
        plain["messages"] = [{key: value for key, value in message.items() if value is not None}
                             for message in plain["messages"]]
        try:
            return self._template.render(add_generation_prompt=add_generation_prompt, documents=None, **plain)
        except Exception as error:  # the template is code that came with the model; it can fail in any way
            raise GenerateError(f"the chat template refused the messages: {error}",
                                hint="check roles and their order, or pass a plain prompt (--raw)") from error


class _GenerationTag(Extension):
    """`{% generation %}` marks the assistant's words for training; here its body is rendered as it is."""

    tags: set[str] = {"generation"}  # noqa: RUF012  (Jinja declares it a plain set)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None,
            separators: tuple[str, str] | None = None, sort_keys: bool = False) -> str:
    """Jinja's own filter escapes HTML characters, which models were not trained on."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise TemplateError(message)
