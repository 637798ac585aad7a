"""What a chat template is given beside the turns of a conversation."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

from gpo.errors import ConfigError

EXAMPLE = '{"enable_thinking": false} for Qwen3, {"reasoning_effort": "low"} for gpt-oss'
GIVEN = ("messages", "add_generation_prompt")  # what a template reads and a prompt says


def with_arguments(tokenizer: Any, arguments: Mapping[str, Any] | None) -> Any:
    """A tokenizer whose chat template is given these arguments in every prompt, as its `chat_template_kwargs`.

    Raises:
        ConfigError: they are no values by names, or the template reads no such name.
    """
    if arguments is None:
        return tokenizer
    if not isinstance(arguments, Mapping) or not all(isinstance(name, str) for name in arguments):
        raise ConfigError(f"chat_template_kwargs is {arguments!r}, expected values by names, such as {EXAMPLE}.")
    template = getattr(tokenizer, "chat_template", None)
    if arguments and not template:
        raise ConfigError("The model has no chat template, which alone reads chat_template_kwargs. Leave them out.")
    for name in arguments:
        if name in GIVEN or not re.search(rf"\b{re.escape(name)}\b", str(template)):
            raise ConfigError(
                f"chat_template_kwargs has {name!r}, expected names that the chat template of the model reads beside "
                f"{' and '.join(GIVEN)}, such as {EXAMPLE}."
            )
    tokenizer = copy.copy(tokenizer)  # which may be somebody else's
    tokenizer.chat_template_kwargs = dict(arguments)
    return tokenizer
