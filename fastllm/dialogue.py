"""How a dialogue is turned into tokens, the same way in training and in chat.

The tokenizer of a published model has a chat template, which lays out a conversation. Without one, the layout is

    <user> question <assistant> answer <end> <user> question <assistant> answer <end> ...

What people type stays text. Where a message contains the text of a control token, its characters are replaced by
private ones before the template is rendered, and put back afterwards. But a template may cut and join its input. So
the conversation is rendered a second time, with every character that occurs in any control token replaced. Only if both
renderings have the same control tokens is the first one used; otherwise the second is, in which no control token can
come from a message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import count

from .errors import DataError
from .tokenizers.base import ASSISTANT, USER, Tokenizer, check_text
from .tokenizers.optional import require

ROLES = ("system", "user", "assistant")
PRIVATE_USE = 0xF0000
"""The first of Unicode's supplementary private-use code points, which have no assigned meaning."""
NOT_PLAIN = ("tool_calls", "reasoning_content", "thinking", "tools")

Message = Mapping[str, str]


def question_tokens(tokenizer: Tokenizer, text: str) -> list[int]:
    """`<user> question <assistant>`: the prompt."""
    return [tokenizer.user_id, *tokenizer.encode(text).tolist(), tokenizer.assistant_id]


def answer_tokens(tokenizer: Tokenizer, text: str) -> list[int]:
    """`answer <end>`: what the model is to say."""
    return [*tokenizer.encode(text).tolist(), tokenizer.end_id]


def end_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """Tokens that end an answer: the end tokens and, without a chat template, `<user>`."""
    if tokenizer.chat_template is None and USER in tokenizer.tokens:
        return tokenizer.end_ids | {tokenizer.user_id}
    return tokenizer.end_ids


def check_speakers(tokenizer: Tokenizer) -> None:
    """Raise DataError unless the tokenizer can mark who speaks, by a chat template or by `<user>` and `<assistant>`."""
    missing = set() if tokenizer.chat_template is not None else {USER, ASSISTANT}.difference(tokenizer.tokens)
    if missing and tokenizer.chat_templates:
        raise DataError(
            'to chat, one of several chat templates must be called "default"; '
            f"got {', '.join(sorted(tokenizer.chat_templates))}; rename one in tokenizer_config.json"
        )
    if missing:
        raise DataError(
            f"to chat, a vocabulary must mark who speaks; got one without {', '.join(sorted(missing))}; "
            "train a model on dialogues, or use `fastllm generate`"
        )


def prompt_tokens(tokenizer: Tokenizer, messages: Iterable[Message], add_generation_prompt: bool = True) -> list[int]:
    """The ids of a conversation, in the layout that the model was tuned on.

    messages               {"role": "system" | "user" | "assistant", "content": text}, the oldest first
    add_generation_prompt  whether to end with the tokens that begin an answer; without a chat template, a question is
                           always followed by `<assistant>`

    Raises TypeError or DataError (a ValueError) for invalid messages, and for those that the model doesn't take:
    without a chat template, a system message or two questions in a row. FormatError for a template that fails,
    FastllmError if the package to render it is missing.
    """
    checked = [_checked(message, position) for position, message in enumerate(messages)]
    check_speakers(tokenizer)
    if tokenizer.chat_template is not None:
        return _laid_out(tokenizer, tokenizer.chat_template, checked, add_generation_prompt)
    ids: list[int] = []
    for position, message in enumerate(checked):
        role = ROLES[1 + position % 2]
        if message["role"] != role:
            raise DataError(
                f"without a chat template, user and assistant must take turns; got {message['role']} as message "
                f"{position + 1}; " + ("put it into the question" if message["role"] == "system" else "join the two")
            )
        ids += (question_tokens if role == "user" else answer_tokens)(tokenizer, message["content"])
    return ids


def training_sequences(tokenizer: Tokenizer, messages: Iterable[Message]) -> list[tuple[list[int], list[bool]]]:
    """A conversation as training sequences: ids, and which of them the model is to say.

    It is to say every answer and the token that ends it. This takes one sequence if the layout of each prefix of the
    conversation is a prefix of the whole layout. A template may lay out earlier turns differently; then there is a
    sequence for each answer, preceded by the prompt that the model will see in a chat.

    Raises as prompt_tokens does.
    """
    turns = list(messages)
    alone = [
        _training_sequence(tokenizer, turns[: position + 1])
        for position, message in enumerate(turns)
        if isinstance(message, Mapping) and message.get("role") == "assistant"
    ]
    if not alone:
        prompt_tokens(tokenizer, turns)  # raises for invalid messages
        return []
    whole, _ = alone[-1]
    if any(whole[: len(ids)] != ids for ids, _ in alone):
        return alone
    said = [False] * len(whole)
    for ids, mine in alone:
        said[: len(ids)] = [before or now for before, now in zip(said, mine, strict=False)]
    return [(whole, said)]


def _training_sequence(tokenizer: Tokenizer, turns: Sequence[Message]) -> tuple[list[int], list[bool]]:
    """The ids of a conversation up to the end of its last message, an answer, and which of them are that answer."""
    ends = tokenizer.end_ids
    before = prompt_tokens(tokenizer, turns[:-1])
    shown = prompt_tokens(tokenizer, turns, add_generation_prompt=False)
    stop = next((at + 1 for at in range(len(before), len(shown)) if shown[at] in ends), 0)
    if not stop or shown[: len(before)] != before:
        # The answer's first characters may have been merged into one token with the text before them.
        end = next((token for token in reversed(shown) if token in ends), tokenizer.end_id)
        shown = [*before, *tokenizer.encode(turns[-1]["content"]).tolist(), end]
        stop = len(shown)
    return shown[:stop], [False] * len(before) + [True] * (stop - len(before))


def _checked(message: object, position: int) -> dict[str, str]:
    if not isinstance(message, Mapping):
        raise TypeError(f'a message must be {{"role": ..., "content": ...}}; got {message!r:.60}; pass a list of them')
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise DataError(f"a role must be one of {', '.join(ROLES)}; got {role!r:.60} in message {position + 1}; "
                        "rename it")  # fmt: skip
    check_plain(message)
    check_text(content)
    return {"role": role, "content": content}


def check_plain(message: Mapping[str, object]) -> None:
    """Raise DataError for a message that holds more than its content, which would be lost silently."""
    for key in NOT_PLAIN:
        if message.get(key) and message[key] != "[]":
            raise DataError(
                f"a message must be a role and a content; got {key} too, which fastllm doesn't support; write it into "
                "the content, or leave the dialogue out"
            )
    if "role" in message and message.get("weight", 1) not in (1, None):
        raise DataError(
            f"an answer must count once; got weight {message['weight']!r:.40}, which fastllm doesn't support; "
            "leave the dialogue out"
        )


def _laid_out(
    tokenizer: Tokenizer, template: str, messages: Sequence[dict[str, str]], add_generation_prompt: bool
) -> list[int]:
    """Render the template, telling its own control tokens from the text of messages."""
    require("jinja2", "a chat template")
    from .tokenizers.chat_template import compiled

    private = _Private((template, *(message["content"] for message in messages)))
    alphabet = "".join({
        character for token_id in tokenizer.control_ids for character in tokenizer.tokens[token_id]
        if not character.isspace()  # templates strip whitespace
    })  # fmt: skip

    def whole(content: str) -> str:
        """The content with the characters of control tokens replaced."""
        return "".join(
            private.hide(tokenizer.tokens[part], tokenizer.tokens[part]) if isinstance(part, int) else part
            for part in tokenizer.split_control(content)
        )

    def bare(content: str) -> str:
        """The content with every character that occurs in a control token replaced."""
        return private.hide(content, alphabet)

    def parts(changed: Callable[[str], str]) -> list[str | int]:
        text = compiled(template).render(
            [{**message, "content": changed(message["content"])} for message in messages],
            add_generation_prompt,
            tokenizer.special_tokens,
        )
        return tokenizer.split_control(text)

    def controls(parts: list[str | int]) -> list[int]:
        return [part for part in parts if isinstance(part, int)]

    found, safe = parts(whole), parts(bare)
    if controls(found) != controls(safe):
        found = safe
    shown = [part if isinstance(part, int) else private.show(part) for part in found]
    return tokenizer.encode_parts(shown).tolist()


class _Private:
    """Replaces characters by private ones that don't occur in `texts`."""

    def __init__(self, texts: Iterable[str]) -> None:
        used = set().union(*texts)
        self._free = (character for character in map(chr, count(PRIVATE_USE)) if character not in used)
        self._of: dict[str, str] = {}

    def hide(self, text: str, characters: str) -> str:
        """The text with these characters replaced."""
        for character in characters:
            if character not in self._of:
                self._of[character] = next(self._free)
        return text.translate({ord(character): self._of[character] for character in characters})

    def show(self, text: str) -> str:
        """The text with the original characters put back."""
        return text.translate({ord(private): character for character, private in self._of.items()})
