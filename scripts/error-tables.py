#!/usr/bin/env python3
"""Checks that the messages of each error type are recorded.

An error type derives `thiserror::Error` or implements `std::error::Error`. Its crate lists its
variants for a table of messages (`variants!(TYPE`, rbuild-testkit), or the table of another type
shows them (RECORDED_IN).
"""
import pathlib
import re
import sys

TOP = pathlib.Path(__file__).resolve().parent.parent
# Types whose messages are in the table of another type, or in another recorded file.
RECORDED_IN = {
    "ArchiveError": "ArchiveProblem",
    "BadValue": "flags",
    "CopyError": "CopyError",
    "DestinationFull": "TransportError",
    "Diagnostic": "dockerfiles",
    "Failure": "Failure",
    "KernelProblem": "LayerError",
    "MountError": "MountProblem",
    "Refusal": "SandboxError",
    "RegistryError": "RegistryProblem",
    "ReportedError": "StoreError",
    "RunnerError": "RunnerProblem",
    "StepFailure": "BuildError",
    "SystemError": "RunnerProblem",
}
DERIVED = re.compile(r"#\[derive\([^)]*\bthiserror::Error\b[^)]*\)\]\s*(?:(?:#\[(?:[^\[\]]|\[[^\]]*\])*\]|///[^\n]*)\s*)*(?:pub(?:\([^)]*\))? )?(?:struct|enum) (\w+)")
WRITTEN = re.compile(r"^impl (?:std::error::)?Error for (\w+)", re.M)

recorded = {path.stem for path in TOP.glob("crates/*/tests/**/*.snap")}
bad, found = False, set()
for crate in sorted(TOP.glob("crates/*")):
    if crate.name in ("rbuild-testkit", "rbuild-fuzz"):
        continue
    texts = {path: path.read_text() for path in sorted(crate.glob("src/**/*.rs"))}
    listed = set(re.findall(r"variants!\((\w+)", "\n".join(texts.values())))
    for path, text in texts.items():
        text = text.split("#[cfg(test)]\nmod tests {")[0]
        for name in DERIVED.findall(text) + WRITTEN.findall(text):
            found.add(name)
            if name not in listed and RECORDED_IN.get(name) not in recorded:
                print(f"{path.relative_to(TOP)}: the messages of {name} are not recorded (variants! of rbuild-testkit)")
                bad = True
for name in sorted(set(RECORDED_IN) - found):
    print(f"scripts/error-tables.py: there is no error type {name}")
    bad = True
sys.exit(bad)
