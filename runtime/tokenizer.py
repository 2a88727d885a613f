"""Text to token ids and back, from the tokenizer files of an artifact."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from ingot.errors import ArtifactError, GenerateError, IngotError
from ingot.runtime.chat import ChatTemplate, Message


class Tokenizer:
    """A `tokenizers.Tokenizer` with the model's special tokens and chat template.

    special: text of each special token by its role, as templates name it: bos_token, eos_token, pad_token, ...
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, *, special: Mapping[str, str] | None = None,
                 chat_template: str | None = None) -> None:
        self.special = dict(special or {})
        self.chat_template = chat_template
        """The Jinja source, None for a model without one."""
        self._tokenizer = tokenizer
        # Files saved during training may pad or truncate; a prompt must come out whole.
        tokenizer.no_padding()
        tokenizer.no_truncation()

    @classmethod
    def open(cls, path: Path | str) -> Tokenizer:
        """The tokenizer in the directory `path` (tokenizer.json and what lies beside it); ArtifactError if it has none."""
        root = Path(path)
        file = root / "tokenizer.json"
        if not file.exists():
            raise ArtifactError("there is no tokenizer.json", where=str(root),
                                hint="pass token ids, or compile from a checkpoint that has a tokenizer")
        with _native(ArtifactError, "the tokenizer cannot be read", where=str(file)):
            tokenizer = tokenizers.Tokenizer.from_file(str(file))
        config = read_json(root / "tokenizer_config.json")
        special = {**_special(read_json(root / "special_tokens_map.json")), **_special(config)}
        template = root / "chat_template.jinja"
        try:
            source = template.read_text(encoding="utf-8") if template.exists() else _template(config.get("chat_template"))
        except (OSError, UnicodeDecodeError) as error:
            raise ArtifactError(f"the chat template cannot be read: {error}", where=str(template)) from error
        return cls(tokenizer, special=special, chat_template=source)

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included; the model's vocab may be larger (padded)."""
        return self._tokenizer.get_vocab_size()

    @property
    def bos_id(self) -> int | None:
        """The id of the BOS token, None if there is none."""
        return self.token_id(self.special.get("bos_token"))

    @property
    def eos_id(self) -> int | None:
        """The id of the EOS token, None if there is none."""
        return self.token_id(self.special.get("eos_token"))

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids that `decode` leaves out."""
        return frozenset(token for token, added in self._tokenizer.get_added_tokens_decoder().items() if added.special)

    def token_id(self, text: str | None) -> int | None:
        """The id of a token given by its exact text; None if it is not in the vocabulary."""
        try:
            return None if text is None else self._tokenizer.token_to_id(text)
        except UnicodeEncodeError:  # half a surrogate pair
            return None

    def token_text(self, token: int) -> str | None:
        """The text of a token id as the vocabulary has it (not decoded); None for an unknown id."""
        return self._tokenizer.id_to_token(token)

    def encode(self, text: str, *, add_special: bool = True) -> list[int]:
        """Token ids of `text`; special tokens written out in it are recognised.

        add_special: add BOS, EOS, ... as the model's tokenizer does, but no second BOS to a text that starts with one.
        """
        with _native(GenerateError, "the tokenizer cannot encode this text"):
            ids = list(self._tokenizer.encode(text, add_special_tokens=add_special).ids)
        bos = self.bos_id
        if add_special and bos is not None and ids[:2] == [bos, bos] and text.startswith(self.special["bos_token"]):
            return ids[1:]
        return ids

    def encode_chat(self, messages: Sequence[Message], *, add_generation_prompt: bool = True, **variables: Any) -> list[int]:
        """Token ids of a conversation in the model's chat format; what the template writes is all that is added."""
        text = self.render_chat(messages, add_generation_prompt=add_generation_prompt, **variables)
        return self.encode(text, add_special=False)

    def render_chat(self, messages: Sequence[Message], *, add_generation_prompt: bool = True, **variables: Any) -> str:
        """The text of a conversation in the model's chat format; GenerateError for a model without a chat template."""
        return self._chat.render(messages, add_generation_prompt=add_generation_prompt, **{**self.special, **variables})

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """The text of token ids; unknown ids are left out."""
        with _native(GenerateError, "the tokenizer cannot decode these tokens"):
            return self._tokenizer.decode([int(token) for token in ids], skip_special_tokens=skip_special)

    @cached_property
    def _chat(self) -> ChatTemplate:
        if self.chat_template is None:
            raise GenerateError("this model has no chat template", hint="pass a plain prompt (--raw)")
        return ChatTemplate(self.chat_template)


@contextmanager
def _native(kind: type[IngotError], what: str, *, where: str | None = None) -> Iterator[None]:
    """What the binding raises, as one error: bare Exceptions, and panics, which are no Exceptions at all."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise kind(f"{what}: {error}", where=where) from error


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in `file`, empty when the file is not there; ArtifactError when it is damaged."""
    if not file.exists():
        return {}
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"the file cannot be read: {error}", where=str(file)) from error
    return data if isinstance(data, dict) else {}


def _special(config: Mapping[str, Any]) -> dict[str, str]:
    """The `*_token` entries of a config; each is a string or an object with `content`."""
    tokens: dict[str, str] = {}
    for key, value in config.items():
        text = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(text, str):
            tokens[key] = text
    return tokens


def _template(entry: Any) -> str | None:
    """The template of a tokenizer_config entry: a string, or a list of named ones of which `default` counts."""
    if isinstance(entry, list):
        named = {item.get("name"): item.get("template") for item in entry if isinstance(item, dict)}
        entry = named.get("default")
    return entry if isinstance(entry, str) else None
