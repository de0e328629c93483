"""A conversation as a model's chat template lays it out, in token ids.

The template writes control tokens such as <|im_end|> between the messages, and a user may
type the same characters. Only the template's become control tokens; the user's are read as
text, letter by letter. To tell them apart, those in the messages are put between two marks
before the template is rendered, and what comes out is compared with the plain rendering: a
template that treats marked text otherwise (some take parts out of messages) is noticed.
"""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from quire.chat_input import ChatOptions, Message, checked, is_conversation
from quire.errors import InvalidRequestError
from quire.tokenizer import Tokenizer, copy_backend

__all__ = ["ChatLayout", "ChatOptions", "Message", "encode_chat", "is_conversation", "lay_out"]

# Rare Chinese characters, of which those that the conversation contains are passed over. Nothing
# that templates do to text changes them: repr and JSON would escape what cannot be printed.
_RARE = range(0x20000, 0x2A6D0)


@dataclass(frozen=True)
class ChatLayout:
    """A laid-out conversation: its text, in pieces that are control tokens or not."""

    pieces: tuple[tuple[str, bool], ...]  # (text, whether it is the template's control token)
    control: Mapping[str, int]  # token ids of what the template may write
    has_typed: bool  # whether read as one text it would have more control tokens than these

    @property
    def text(self) -> str:
        """The conversation as one text."""
        return "".join(text for text, _ in self.pieces)


def lay_out(tokenizer: Tokenizer, messages: Sequence[Message], options: ChatOptions) -> ChatLayout:
    """Render a conversation and say which of its parts are the template's control tokens.

    Raises:
        InvalidRequestError: there is no template; it refuses the messages; a message is not
            made of text; what the template makes of a typed control token cannot be followed.
    """
    given = _Inputs(checked(messages), options.tools)
    try:
        template = tokenizer.source.get_chat_template(options.chat_template, tools=options.tools)
    except ValueError as error:
        raise InvalidRequestError(
            f"this model has no chat template to lay messages out with ({error}): give "
            "chat_template, or lay them out yourself and use generate"
        ) from None
    control = {
        name: token_id
        for token_id, name in tokenizer.added.items()
        if tokenizer.is_special(name) or (name in template and not name.isspace())
    }
    written = "".join(_strings([given.messages, given.tools]))
    marks = _Marks(control, filter(tokenizer.is_special, control), written)
    text = _render(tokenizer, template, given, options)
    marked = marks.put_into(given)
    # A template may look at the clock, so that it is rendered twice only where it must be.
    pieces = marks.split(text if marked == given else _render(tokenizer, template, marked, options))
    if "".join(piece for piece, _ in pieces) != text:
        names = ", ".join(marks.found_in(written)) or "part of one"
        raise InvalidRequestError(
            f"a message holds what is a control token of this model ({names}), and its chat "
            "template treats it otherwise than other text, so that it cannot be told from the "
            "template's own: take it out of the message"
        )
    whole = marks.split(text)
    return ChatLayout(tuple(pieces), control, has_typed=_spans(whole) != _spans(pieces))


def encode_chat(tokenizer: Tokenizer, layout: ChatLayout) -> list[int]:
    """Return the token ids of a laid-out conversation.

    The template has written the model's first token, if it has one, so none is added.

    Raises:
        InvalidRequestError: a typed control token cannot be read as text.
    """
    if not layout.has_typed:
        return tokenizer.encode(layout.text, add_special_tokens=False)
    # A copy of the tokenizer knows the control tokens by other names, which nobody has typed.
    names = dict(zip(layout.control, _unused(layout.text, len(layout.control)), strict=True))
    ids: list[int] = []
    if tokenizer.backend is not None:
        copy = copy_backend(tokenizer.backend, names)
        known = {
            copy.token_to_id(names.get(name, name)): token_id
            for token_id, name in tokenizer.added.items()
        }
        renamed = "".join(names[text] if is_control else text for text, is_control in layout.pieces)
        found = copy.encode(renamed, add_special_tokens=False).ids
        ids = [known.get(token_id, token_id) for token_id in found]
    num_control = sum(is_control for _, is_control in layout.pieces)
    if sum(token_id in layout.control.values() for token_id in ids) != num_control or not ids:
        raise InvalidRequestError(
            "a message holds what is a control token of this model, and its tokenizer cannot "
            "read it as text: take it out of the message"
        )
    return ids


@dataclass(frozen=True)
class _Inputs:
    """What a template is rendered from and a user may have written."""

    messages: list[dict[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None


class _Marks:
    """Two characters around each control token that a message holds.

    One such character also ends a string that a control token could begin in, and begins a
    string that one could end in or go through: strings side by side must not make one together.
    """

    def __init__(self, control: Mapping[str, int], special: Iterable[str], written: str) -> None:
        """`written` is all that was typed; the characters are none of it."""
        self._all, self._special = _finder(tuple(control)), _finder(tuple(special))
        self._start, self._end = start, end = _unused(written, 2)
        self._parts = re.compile(f"{start}({self._all.pattern.pattern}){end}|[{start}{end}]")

    def put_into(self, given: _Inputs) -> _Inputs:
        """Return the same with marks in every string.

        In an answer of the model, what is no special token is the model's own: templates take
        out what it thought by tags, <think> to </think>, that are tokens too.
        """
        messages = [
            self._mark(message, self._special if message["role"] == "assistant" else self._all)
            for message in given.messages
        ]
        return _Inputs(messages, self._mark(given.tools, self._all))

    def _mark(self, value: Any, finder: _Finder, key: str = "") -> Any:
        if isinstance(value, Mapping):
            return {key: self._mark(item, finder, key) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._mark(item, finder) for item in value]
        if not isinstance(value, str):
            return value
        marked = finder.pattern.sub(f"{self._start}\\g<0>{self._end}", value)
        # Templates do make control tokens of roles: '<|' + role + '|>'.
        inside = key != "role" and finder.is_part(value)
        before = self._start if inside or finder.may_end_in(value) else ""
        behind = self._end if finder.may_begin_in(value) else ""
        return before + marked + behind

    def found_in(self, text: str) -> list[str]:
        """Return the control tokens that a text holds."""
        return sorted(set(self._all.pattern.findall(text)))

    def split(self, rendered: str) -> list[tuple[str, bool]]:
        """Take the marks out: pieces of text, each with whether it is a control token."""
        pieces: list[tuple[str, bool]] = []
        unmarked = self._parts.split(rendered)  # template, typed or None, template, …
        for index, part in enumerate(unmarked):
            if index % 2:
                pieces.append((part or "", False))
                continue
            behind = 0
            for match in self._all.pattern.finditer(part):
                pieces += [(part[behind : match.start()], False), (match[0], True)]
                behind = match.end()
            pieces.append((part[behind:], False))
        return pieces


class _Finder:
    """Finds tokens, and the beginnings and ends of tokens, in a text."""

    def __init__(self, names: Iterable[str]) -> None:
        longest_first = sorted(names, key=len, reverse=True)  # of two that fit, the longer one
        self.pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._names = longest_first
        self._heads = {name[:size] for name in longest_first for size in range(1, len(name))}
        self._tails = {name[size:] for name in longest_first for size in range(1, len(name))}
        self._sizes = range(1, max(map(len, longest_first), default=1))

    def is_part(self, text: str) -> bool:
        """Whether a text is a part of a token."""
        return bool(text) and any(text in name for name in self._names)

    def may_begin_in(self, text: str) -> bool:
        """Whether a token can begin at the end of a text."""
        return any(text[-size:] in self._heads for size in self._sizes)

    def may_end_in(self, text: str) -> bool:
        """Whether a token can end at the beginning of a text."""
        return any(text[:size] in self._tails for size in self._sizes)


@lru_cache(maxsize=16)
def _finder(names: tuple[str, ...]) -> _Finder:
    """Return the finder of these tokens; a model may have a thousand, the same in every chat."""
    return _Finder(names)


def _render(tokenizer: Tokenizer, template: str, given: _Inputs, options: ChatOptions) -> str:
    from jinja2.exceptions import TemplateError  # transformers renders with it

    apply = tokenizer.source.apply_chat_template
    values = options.chat_template_kwargs or {}
    # Names that mean something else there, or a template's own; documents are passed on to it.
    taken = ({*inspect.signature(apply).parameters} | {"messages", "conversations"}) - {"documents"}
    for name in values:
        if name in taken:
            raise InvalidRequestError(
                f"chat_template_kwargs={dict(values)!r}: {name!r} is no value for the template; "
                "what lays a conversation out is an argument of chat itself (chat_template, "
                "add_generation_prompt, continue_final_message, tools)"
            )
    try:
        return str(
            apply(
                given.messages,
                tools=given.tools,
                chat_template=template,
                add_generation_prompt=options.add_generation_prompt,
                continue_final_message=options.continue_final_message,
                tokenize=False,
                **values,
            )
        )
    except (TemplateError, ValueError) as error:
        raise InvalidRequestError(f"the chat template refuses the messages: {error}") from error
    except Exception as error:  # a template is a program: 1 / 0 is one
        raise InvalidRequestError(
            f"the chat template fails on the messages: {type(error).__name__}: {error}"
        ) from error


def _strings(value: object) -> Iterator[str]:
    """Return every string in nested lists and dicts."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _strings(item)


def _spans(pieces: Sequence[tuple[str, bool]]) -> list[tuple[int, str]]:
    """Return where control tokens begin, and which."""
    found, position = [], 0
    for text, is_control in pieces:
        if is_control:
            found.append((position, text))
        position += len(text)
    return found


def _unused(text: str, count: int) -> list[str]:
    """Return rare characters that a text does not contain."""
    free = (chr(code) for code in _RARE if chr(code) not in text)
    return list(itertools.islice(free, count))
