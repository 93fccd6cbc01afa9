"""Finds types whose methods are spread over more than three files.

    python3 scripts/type-files.py

Counts the files of a crate that have an inherent `impl` block of the type; tests are free. Ends with
1 if a type has too many.
"""
import collections
import re
import sys
from pathlib import Path

TOP = Path(__file__).parent.parent
MOST = 3
IMPL = re.compile(r"^ *(?:unsafe )?impl\b([^{;]*)\{", re.M)


def without_parameters(text):
    """Returns the text without what is in angle brackets, innermost first. An arrow is not a bracket."""
    text = text.replace("->", "")
    while (shorter := re.sub(r"<[^<>]*>", "", text)) != text:
        text = shorter
    return text


def self_type(header):
    """Returns the type of an inherent `impl` from the text before its brace, or None for a trait's."""
    words = without_parameters(header).split(" where ")[0].split()
    return words[-1].split("::")[-1] if words and "for" not in words else None


files = collections.defaultdict(set)
for path in sorted(TOP.glob("crates/*/src/**/*.rs")):
    if "tests" in path.parts or path.stem.endswith("tests"):
        continue
    text = re.sub(r"//.*", "", path.read_text().split("#[cfg(test)]\nmod tests {")[0])
    crate = path.relative_to(TOP).parts[1]
    for match in IMPL.finditer(text):
        if name := self_type(match.group(1)):
            files[crate, name].add(str(path.relative_to(TOP)))

bad = False
for (crate, name), where in sorted(files.items()):
    if len(where) > MOST:
        print(f"the methods of {name} are in {len(where)} files, {MOST} at most: {', '.join(sorted(where))}")
        bad = True
sys.exit(bad)
