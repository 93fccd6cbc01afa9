"""Finds functions that take tuples apart in their parameter lists.

    python3 scripts/parameters.py

A tuple hides its members from clippy's too_many_arguments and gives them no name. Values that
belong together are a type with named fields; others are parameters of their own. Closures and tests
are free. Ends with 1 if there is such a function.
"""
import re
import sys
from pathlib import Path

TOP = Path(__file__).parent.parent
FUNCTION = re.compile(r"\bfn (\w+)")
PAIRS = {"(": ")", "[": "]", "{": "}", "<": ">"}


def code(path):
    """Returns the source without test modules, and with blanks in place of comments and strings."""
    text = path.read_text().split("#[cfg(test)]\nmod tests {")[0]
    return re.sub(r'//[^\n]*|"(?:[^"\\]|\\.)*"', lambda match: re.sub(r"[^\n]", " ", match.group()), text)


def closing(text, start):
    """Returns the index of the bracket that closes the one at `start`. An arrow is not a bracket."""
    depth = 0
    for at in range(start, len(text)):
        if text[at] in PAIRS:
            depth += 1
        elif text[at] in PAIRS.values() and text[at - 1 : at + 1] != "->":
            depth -= 1
            if depth == 0:
                return at
    return len(text)


def parameters(text, start):
    """Returns the parameters in the list that begins at `start`."""
    end, at, begin = closing(text, start), start + 1, start + 1
    while at < end:
        if text[at] in PAIRS:
            at = closing(text, at)
        elif text[at] == ",":
            yield text[begin:at].strip()
            begin = at + 1
        at += 1
    yield text[begin:end].strip()


bad = False
for path in sorted([*TOP.glob("crates/**/*.rs"), *TOP.glob("xtask/src/**/*.rs")]):
    if {"tests", "target"} & set(path.relative_to(TOP).parts) or path.stem.endswith("tests"):
        continue
    text = code(path)
    for function in FUNCTION.finditer(text):
        start = function.end()
        if text[start : start + 1] == "<":
            start = closing(text, start) + 1
        if text[start : start + 1] != "(":
            continue
        if any(re.match(r"&?\s*\(", parameter) for parameter in parameters(text, start)):
            line = text.count("\n", 0, function.start()) + 1
            print(f"{path.relative_to(TOP)}:{line}: {function.group(1)} takes a tuple apart: name its members")
            bad = True
sys.exit(bad)
