"""Finds type names that mean different things in different places.

    python3 scripts/type-names.py

Each struct, enum, trait and type alias of the crates has a name of its own, private ones as well.
Tests are free, and so is `Result`, which each crate defines for its own error. Ends with 1 if a name
is defined twice.
"""
import collections
import re
import sys
from pathlib import Path

TOP = Path(__file__).parent.parent
SHARED = {"Result"}
DEFINITION = re.compile(r"^(?:pub(?:\([^)]*\))? )?(?:struct|enum|trait|union|type) (\w+)", re.M)

places = collections.defaultdict(list)
for path in sorted(TOP.glob("crates/*/src/**/*.rs")):
    crate = path.relative_to(TOP).parts[1]
    if "tests" in path.parts or path.stem.endswith("tests") or crate in ("rbuild-fuzz", "rbuild-testkit"):
        continue
    text = path.read_text().split("#[cfg(test)]\nmod tests {")[0]
    for match in DEFINITION.finditer(text):
        places[match.group(1)].append(f"{path.relative_to(TOP)}:{text.count(chr(10), 0, match.start()) + 1}")

bad = False
for name, where in sorted(places.items()):
    if len(where) > 1 and name not in SHARED:
        print(f"the type name {name} is defined in {', '.join(where)}")
        bad = True
sys.exit(bad)
