#!/usr/bin/env python3
"""Checks that the message of an error does not contain that of its source.

The command line joins the messages of a chain (docs/design/0012), so such a message would be
printed twice. Looks at `#[error("...")]` of thiserror and at the field that is the source.
"""
import pathlib
import re
import sys

TOP = pathlib.Path(__file__).resolve().parent.parent
ATTRIBUTE = re.compile(r"#\[error\(")


def closing(text, at):
    """Returns the position after the bracket that closes the one at `at`."""
    pairs, depth, quoted = {"(": 1, "{": 1, "[": 1, ")": -1, "}": -1, "]": -1}, 0, False
    while at < len(text):
        if text[at] == "\\" and quoted:
            at += 1
        elif text[at] == '"':
            quoted = not quoted
        elif not quoted:
            depth += pairs.get(text[at], 0)
        at += 1
        if depth == 0 and not quoted:
            return at
    return at


def fields_of(text, at):
    """Returns the name of the variant or type at `at`, and the text of its fields."""
    rest = re.compile(r"\s*(?:#\[[^\]]*\]\s*|///[^\n]*\n\s*)*(?:pub(?:\([a-z]+\))? )?(?:struct |enum )?(\w+)(?:<[^>]*>)?\s*([({])?")
    found = rest.match(text, at)
    if not found or not found.group(2):
        return (found.group(1) if found else "?"), ""
    start = found.start(2)
    return found.group(1), text[start:closing(text, start)]


bad = 0
for path in sorted(TOP.glob("crates/*/src/**/*.rs")):
    text = path.read_text()
    for match in ATTRIBUTE.finditer(text):
        end = closing(text, match.end() - 1)
        message = text[match.end():end - 1]
        if message.strip() == "transparent":
            continue
        # The attribute's own bracket.
        name, fields = fields_of(text, end + 1)
        words = set(re.findall(r"\{(\w+)", message)) | set(re.findall(r"\.(\w+)", message))
        is_source = lambda field: re.search(r"#\[(from|source)\]", field)
        named = set(re.findall(r"#\[(?:from|source)\]\s*(?:pub )?(\w+):", fields))
        if re.search(r"\bsource:", fields):
            named.add("source")
        if fields.startswith("(") and is_source(fields):
            named.add("0")
        for word in sorted(words & named):
            line = text.count("\n", 0, match.start()) + 1
            print(f"{path.relative_to(TOP)}:{line}: the message of {name} repeats that of its source `{word}`")
            bad = 1
sys.exit(bad)
