"""Finds words of the command line in messages of library crates.

    python3 scripts/command-line-words.py

A message is a string of several words. It must name neither a flag nor a verb of rbuild: libraries
return a `Remedy`, which crates/rbuild/src/ui/hints puts into words. Flags of instructions belong
to the Dockerfile and are allowed. Exits with 1 if a message contains such words.
"""
import re
import sys
from pathlib import Path

TOP = Path(__file__).parent.parent
# The command line itself, and crates that are not part of the program.
EXCEPT = {"rbuild", "rbuild-fuzz"}
# A test of the parser records the options of all instructions.
OPTIONS = TOP / "crates/rbuild-dockerfile/tests/messages/options.snap"
INSTRUCTION_FLAGS = set(re.findall(r" --([a-z-]+)", OPTIONS.read_text()))
# Flags of other programs that messages name.
OTHER_FLAGS = {"format"}
STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.S)
FLAG = re.compile(r"(?<![\w-])--([a-z][a-z-]+)")
VERB = re.compile(r"`rbuild [a-z]+|\brbuild (?:build|check|cp|create|df|diff|doctor|fsck|history|images|import|inspect|load|logs|prune|rm|rmi|run|save|tag)\b")


def messages(path):
    """Yields line and text of each string of several words, tests aside."""
    text = re.sub(r"^[ \t]*//[^\n]*", "", path.read_text(), flags=re.M)
    text = re.split(r"#\[cfg\(test\)\]\s*(?:pub )?mod \w+", text)[0]
    for found in STRING.finditer(text):
        if " " in found.group().strip():
            yield text[: found.start()].count("\n") + 1, found.group()


bad = False
for path in sorted(TOP.glob("crates/*/src/**/*.rs")):
    relative = path.relative_to(TOP)
    if relative.parts[1] in EXCEPT or path.name == "tests.rs" or "tests" in relative.parts:
        continue
    for line, text in messages(path):
        words = ["--" + flag for flag in FLAG.findall(text) if flag not in INSTRUCTION_FLAGS | OTHER_FLAGS]
        words += [verb.strip("`") for verb in VERB.findall(text)]
        if words:
            bad = True
            print(f"{relative}:{line}: words of the command line in a message: {', '.join(words)}")
sys.exit(bad)
