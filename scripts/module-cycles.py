"""Finds import cycles between the modules of each crate.

    python3 scripts/module-cycles.py            prints every cycle that is not in module-cycles.allowed
    python3 scripts/module-cycles.py --all      prints all cycles, those of folders as well

A module imports another if its source, tests aside, names an item of it by a path from `crate`, or
declares it as a child. Imports through a re-export count for the module that is re-exported. A path
from `super` imports the parent, which declares its child and so closes a cycle: siblings are named
from `crate`.

A folder is a module of the crate's root together with the modules below it. Folders must not form
cycles either, except in the crates of TANGLED.
Exits with 1 if a cycle is new, or if an allowed one no longer exists.
"""
import re
import sys
from pathlib import Path

TOP = Path(__file__).parent.parent
ALLOWED = TOP / "scripts/module-cycles.allowed"
# Crates whose folders import each other.
TANGLED = {"rbuild", "rbuild-registry", "rbuild-sandbox", "rbuild-store"}
PATH = re.compile(r"\b(crate|super(?:::super)*|self)((?:::\w+)*)(?:::([{*]))")
PLAIN = re.compile(r"\b(crate|super(?:::super)*|self)((?:::\w+)+)(?![\w:])")


def code(path):
    """Returns the source without comments, strings and test modules."""
    text = path.read_text()
    text = re.sub(r"//[^\n]*", "", text)
    text = re.sub(r'"(?:[^"\\]|\\.)*"', '""', text)
    return re.split(r"#\[cfg\(test\)\]\s*(?:pub )?mod \w+", text)[0]


def modules(crate):
    """Maps the name of each module (`a::b`, empty for the root) to its source."""
    found = {}
    for path in (crate / "src").rglob("*.rs"):
        parts = path.relative_to(crate / "src").with_suffix("").parts
        if parts[-1] == "tests" or "tests" in parts[:-1]:
            continue
        name = "::".join(parts)
        found["" if name in ("lib", "main") else name.removesuffix("::mod")] = code(path)
    return found


def braces(text, start):
    """Returns the first segments of the list that opens at `start`, and of lists inside it."""
    depth, end = 0, start
    for end in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            break
    return re.findall(r"(?:[{,])\s*(\w+(?:::\w+)*)", text[start:end])


def targets(name, text):
    """Yields the paths that a module names, as lists of segments from the crate's root."""
    here = name.split("::") if name else []
    for match in [*PATH.finditer(text), *PLAIN.finditer(text)]:
        root, rest = match.group(1), [part for part in match.group(2).split("::") if part]
        base = here[: len(here) - root.count("super")] if root.startswith("super") else []
        base = here if root == "self" else base
        tails = braces(text, match.end() - 1) if match.group(0).endswith("{") else [""]
        for tail in tails:
            yield base + rest + [part for part in tail.split("::") if part]
    for child in re.findall(r"\bmod (\w+);", text):
        yield here + [child]
    for match in re.finditer(r"(?<![\w:])([a-z_]\w*)::(\w+)", text):
        yield here + [match.group(1), match.group(2)]


def edges(found):
    reexports = {}
    for name, text in found.items():
        for match in re.finditer(r"pub(?:\(crate\))? use ((?:\w+::)+)(\{[^;]*\}|\w+);", text):
            base = [part for part in match.group(1).split("::") if part not in ("", "crate", "self")]
            here = name.split("::") if name and not match.group(1).startswith("crate") else []
            source = "::".join(here + base)
            for item in re.findall(r"\w+", match.group(2)):
                reexports[(name, item)] = source
    graph = {name: set() for name in found if name}
    for name in graph:
        parent = name.rpartition("::")[0]
        # Visibility (`pub(super)`) is not an import.
        if parent in graph and re.search(r"(?<![(\w])super::", found[name]):
            graph[name].add(parent)
        for path in targets(name, found[name]):
            for cut in range(len(path), -1, -1):
                module = "::".join(path[:cut])
                if module in found:
                    item = path[cut] if cut < len(path) else ""
                    module = reexports.get((module, item), module)
                    if module and module != name and module in graph:
                        graph[name].add(module)
                    break
    return graph


def cycles(graph):
    """Returns the strongly connected components of more than one module (Tarjan)."""
    index, low, stack, found = {}, {}, [], []

    def visit(node):
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in graph[node]:
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            component = stack[stack.index(node):]
            del stack[stack.index(node):]
            if len(component) > 1:
                found.append(sorted(component))

    for node in graph:
        if node not in index:
            visit(node)
    return sorted(found)


def folders(graph):
    """Returns the imports between the folders of a crate."""
    found = {}
    for name, targets in graph.items():
        folder = name.split("::")[0]
        others = {target.split("::")[0] for target in targets} - {folder}
        found.setdefault(folder, set()).update(others)
    return found


def main():
    sys.setrecursionlimit(10000)
    now, of_folders = [], {}
    for crate in sorted((TOP / "crates").iterdir()):
        if (crate / "src").is_dir():
            graph = edges(modules(crate))
            now += [f"{crate.name}: {' '.join(cycle)}" for cycle in cycles(graph)]
            of_folders[crate.name] = [" ".join(cycle) for cycle in cycles(folders(graph))]
    if "--all" in sys.argv:
        print("\n".join(now + [f"folders of {name}: {cycle}" for name, all in of_folders.items() for cycle in all]))
        return 0
    allowed = ALLOWED.read_text().splitlines() if ALLOWED.exists() else []
    new = [f"new import cycle: {cycle}" for cycle in now if cycle not in allowed]
    gone = [f"no longer a cycle, remove it from {ALLOWED.name}: {cycle}" for cycle in allowed if cycle not in now]
    for name, found in of_folders.items():
        if name not in TANGLED:
            new += [f"new import cycle of folders: {name}: {cycle}" for cycle in found]
        elif not found:
            gone.append(f"no folders of {name} form a cycle, remove it from TANGLED")
    print("\n".join(new + gone))
    return 1 if new or gone else 0


sys.exit(main())
