"""What a caller gives to chat: messages and options, read and refused by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quire.errors import InvalidRequestError
from quire.sampling.values import flag

Message = Mapping[str, Any]  # {"role": …, "content": …} and what else the template reads


@dataclass(frozen=True)
class ChatOptions:
    """How to lay out a conversation; names and defaults are those of vLLM's `LLM.chat`.

    Args:
        chat_template: a template, or the name of one; by default the tokenizer's own.
        add_generation_prompt: end with the beginning of an answer.
        continue_final_message: leave the last message open, for the model to go on with.
        tools: descriptions of functions, for a template that knows them.
        chat_template_kwargs: further values for the template, such as `enable_thinking`.

    Raises:
        InvalidRequestError: a value of another type; the message names it.
    """

    chat_template: str | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    tools: Sequence[Mapping[str, Any]] | None = None
    chat_template_kwargs: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for name in ("add_generation_prompt", "continue_final_message"):
            flag(name, getattr(self, name))
        if not isinstance(self.chat_template, str | None):
            raise InvalidRequestError(
                f"chat_template={self.chat_template!r}: must be a template as a string, the name "
                "of one, or None for the tokenizer's own"
            )
        tools = self.tools
        is_list = isinstance(tools, list | tuple) and all(isinstance(t, Mapping) for t in tools)
        if tools is not None and not is_list:
            raise InvalidRequestError(
                f"tools={tools!r}: must be a list of dicts that describe functions, as "
                "transformers.utils.get_json_schema makes them"
            )
        values = self.chat_template_kwargs
        is_dict = isinstance(values, Mapping) and all(isinstance(name, str) for name in values)
        if values is not None and not is_dict:
            raise InvalidRequestError(
                f"chat_template_kwargs={values!r}: must be a dict from names to values"
            )


def is_conversation(messages: object) -> bool:
    """Whether this is one conversation, good or bad, rather than a list of them."""
    if isinstance(messages, str | bytes) or not isinstance(messages, Sequence) or not messages:
        return True
    return not isinstance(messages[0], Sequence) or isinstance(messages[0], str | bytes)


def checked(messages: object) -> list[dict[str, Any]]:
    """Return a conversation's messages with their contents as plain strings.

    Raises:
        InvalidRequestError: it is no conversation, or a message is not made of text.
    """
    if isinstance(messages, str | bytes) or not isinstance(messages, Sequence) or not messages:
        raise InvalidRequestError(
            f"messages {messages!r}: give a list of {{'role': …, 'content': …}}, at least one"
        )
    found = []
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise InvalidRequestError(
                f"message {index} is {message!r}: give {{'role': …, 'content': …}}"
            )
        found.append(dict(message))
        if "content" in message:
            found[-1]["content"] = _as_text(index, message["content"])
    return found


def _as_text(index: int, content: object) -> str | None:
    """Join the parts of a content that has several, as vLLM does for templates of strings."""
    if content is None or isinstance(content, str):
        return content
    parts = content if isinstance(content, list | tuple) else [content]
    texts = []
    for part in parts:
        text = part.get("text") if isinstance(part, Mapping) else part
        if not isinstance(text, str):
            raise InvalidRequestError(
                f"the content of message {index} has {part!r}: quire reads text only, as a "
                "string or as a list of {'type': 'text', 'text': …}"
            )
        texts.append(text)
    return "\n".join(texts)
