"""Recomputes the figures that documents print from the records in a checkout.

README.md, docs/*.md  blocks of figures, from docs/evidence/*.jinja; other figures stand in docs/evidence/unbound.yaml
docs/experiments/     reports, from the records of their runs
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from detection.evidence.blocks import Block, compare_lines, read_blocks, replace_blocks
from detection.evidence.findings import Finding
from detection.evidence.records import Records
from detection.evidence.reports import check_report, experiment_folders, recompute
from detection.evidence.templates import TEMPLATES, Rendered, render
from detection.evidence.unbound import KINDS, QUALITY, Entry, Loose, loose_figures, read_entries, table_digest
from detection.files import write_text

__all__ = ["Verdict", "verify"]

UNBOUND = f"{TEMPLATES}/unbound.yaml"
REPAIR = "resdet verify --write writes the block again"


@dataclass
class Verdict:
    """The scope of a check, and the figures that do not follow from records.

    Attributes:
        findings: figures that do not follow; empty if all do.
        figures: values in blocks.
        blocks: blocks of all documents.
        records: records that the blocks use.
        unbound: kind -> tables and sentences whose figures have no record.
        reports: experiment -> how its report was checked.
        without_manifest: runs of docs/runs that are older than manifest.json.
    """

    findings: list[Finding] = field(default_factory=list)
    figures: int = 0
    blocks: int = 0
    records: set[str] = field(default_factory=set)
    unbound: Counter[str] = field(default_factory=Counter)
    reports: dict[str, str] = field(default_factory=dict)
    without_manifest: int = 0

    def lines(self) -> list[str]:
        """Returns the lines to print, findings last."""
        kinds = ", ".join(f"{self.unbound[kind]} {kind}" for kind in KINDS)
        return [
            f"{self.figures} figures in {self.blocks} blocks, from {len(self.records)} records; runs of docs/runs "
            f"without manifest.json (data digest, code, hardware): {self.without_manifest}",
            f"figures without a record, {UNBOUND}: {kinds}",
            *(f"report of {name}: {how}" for name, how in self.reports.items()),
            *map(str, self.findings),
        ]


def verify(root: Path, *, write: bool = False, full: bool = False, say: Callable[[str], None] = print) -> Verdict:
    """Checks every figure of the checkout ``root``.

    Args:
        root: folder of README.md and docs/.
        write: rewrite blocks that differ, but no digests and reports.
        full: also recompute results and reports from detections, if the labels of the test images are known.
        say: called with each line of progress.

    Raises:
        ValueError: no checkout, or broken marks, templates or records.
    """
    documents = [root / "README.md", *sorted((root / "docs").glob("*.md")), root / "datasets" / "README.md"]
    documents = [path for path in documents if path.is_file()]
    if not (root / "docs").is_dir() or not documents:
        raise ValueError(f"{root} is no checkout: it has no README.md and docs/; give its folder by --root")
    verdict, records, entries = Verdict(), Records(root), read_entries(root / UNBOUND)
    used = set[Entry]()
    templates = {_document(root, path): path for path in sorted((root / TEMPLATES).glob("*.jinja"))}
    for path in documents:
        name = str(path.relative_to(root))
        text = path.read_text(encoding="utf-8")
        try:
            blocks = read_blocks(text)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        template = templates.pop(path, None)
        rendered = Rendered({}, 0) if template is None else render(template, records)
        verdict.blocks += len(blocks)
        verdict.figures += rendered.figures
        found = _check_blocks(name, blocks, rendered.blocks)
        if write and found:
            write_text(path, replace_blocks(text, rendered.blocks))
            say(f"{name}: {len(found)} lines written")
            found = _check_blocks(name, read_blocks(path.read_text(encoding="utf-8")), rendered.blocks)
        verdict.findings += found
        for loose in loose_figures(text, blocks):
            verdict.findings += _check_loose(name, loose, entries, used)
    for path in templates.values():
        verdict.findings.append(Finding(str(path.relative_to(root)), 0, "belongs to no document", "remove it"))
    verdict.findings += [
        Finding(UNBOUND, 0, f"{entry.file} has no {entry.table or entry.text!r} any more", "remove the entry")
        for entry in entries
        if entry not in used
    ]
    verdict.without_manifest = records.without_manifest()
    verdict.records, verdict.unbound = records.read, Counter(entry.kind for entry in used)
    _check_reports(root, verdict, full=full)
    return verdict


def _document(root: Path, template: Path) -> Path:
    folder = root if template.stem == "README" else root / "docs"
    return folder / f"{template.stem}.md"


def _check_blocks(name: str, blocks: Sequence[Block], expected: Mapping[str, Sequence[str]]) -> list[Finding]:
    """Returns the lines of ``blocks`` that differ from records, and blocks that only document or template has."""
    found = list[Finding]()
    for block in blocks:
        if block.name not in expected:
            text = f"figures {block.name!r} have no block in {TEMPLATES}/{Path(name).stem}.jinja"
            found.append(Finding(name, block.line - 1, text, "add it there, or remove the marks"))
            continue
        for line, text in compare_lines(block, expected[block.name]):
            found.append(Finding(name, line, f"figures {block.name!r}: {text}", REPAIR))
    for missing in expected.keys() - {block.name for block in blocks}:
        found.append(
            Finding(name, 0, f"has no figures {missing!r}", f"write '<!-- figures: {missing} -->' and its end")
        )
    return found


def _check_loose(name: str, loose: Loose, entries: Sequence[Entry], used: set[Entry]) -> list[Finding]:
    """Returns the findings on figures outside blocks; adds the entries that match them to ``used``."""
    own = [entry for entry in entries if entry.file == name]
    if not loose.number:
        text = loose.text
        for entry in own:
            if entry.text and entry.text in text:
                used.add(entry)
                text = text.replace(entry.text, "")
        left = QUALITY.search(text)
        repair = f"put it into a block, or quote it in {UNBOUND} with its source"
        return [Finding(name, loose.line, f"{left[0]!r} has no record", repair)] if left else []
    entry = next((entry for entry in own if (entry.table, entry.number) == (loose.heading, loose.number)), None)
    if entry is None:
        table = f"table {loose.number} under {loose.heading!r} has numbers and no record"
        repair = f"put it into a block, or name it in {UNBOUND} with its source; its digest is '{table_digest(loose)}'"
        return [Finding(name, loose.line, table, repair)]
    used.add(entry)
    if entry.digest and entry.digest != table_digest(loose):
        text = f"table {loose.number} under {loose.heading!r} ({entry.kind}: {entry.why}) was changed"
        repair = f"put it back, or if its source says so, write the digest '{table_digest(loose)}' into {UNBOUND}"
        return [Finding(name, loose.line, text, repair)]
    return []


def _check_reports(root: Path, verdict: Verdict, *, full: bool) -> None:
    for folder in experiment_folders(root):
        found = check_report(folder, root)
        how = "follows from the results of its runs"
        if full:
            try:
                found += recompute(folder, root)
                how = "follows from the detections of its runs and the labels of the test set"
            except ValueError as error:
                how += f"; not from detections: {error}"
        verdict.findings += found
        verdict.reports[folder.name] = how if not found else f"{len(found)} figures do not follow"
