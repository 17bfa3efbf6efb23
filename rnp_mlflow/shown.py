"""Text of a file, before it is printed, drawn or stored: nothing in it controls a terminal, and it has an end."""

import unicodedata

LONGEST = 2000  # characters of an error or of a printed line


def printable(text: str, most: int = LONGEST) -> str:
    """Return the text with escapes in place of what is not printed (control characters, changes of direction).

    Of a text that is longer than `most` characters, the start and the end are kept. Line breaks stay.
    """
    if len(text) > most:
        text = f"{text[: most // 2]} … {text[-(most // 2 - 3) :]}"
    return text if text.isprintable() else "".join(map(_printable, text))


def _printable(character: str) -> str:
    if character.isprintable() or character == "\n" or unicodedata.category(character) == "Zs":
        return character
    return character.encode("unicode_escape").decode()
