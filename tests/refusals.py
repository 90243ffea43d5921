"""What readers say of files that they refuse."""

import pytest

from fastllm import FormatError


def refusal(path, read):
    """One line, which begins with the file."""
    with pytest.raises(FormatError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message
