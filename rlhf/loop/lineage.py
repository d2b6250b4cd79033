"""`rlhf lineage NAME`: what an artifact came from, down to the ratings, and what came from a rating or a snapshot.

    a run        its parents, their parents ..., each snapshot with the ratings in it
    a rating     the snapshots that hold it, and every run that learned from one of them, at any remove
    a snapshot   both: the ratings in it, and the runs that learned from it

Printed as a tree; with --out the same is written as lineage.svg and lineage.json.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from sqlalchemy import Connection, select, text

from feedback_app.store.engine import Store
from feedback_app.store.registry_schema import artifact_parents, artifacts
from feedback_app.store.schema import annotations_table, snapshot_members, snapshots
from rlhf.core.errors import DataError
from rlhf.core.files import atomic_file, write_json
from rlhf.core.plots import INK, PALETTE
from rlhf.core.run import Launch, Workspace
from rlhf.loop.registry import Registry
from rlhf.loop.registry_config import LineageConfig

RATINGS, SNAPSHOT = "ratings", "snapshot"
_COLORS = {
    RATINGS: PALETTE[2],
    SNAPSHOT: PALETTE[5],
    "reward": PALETTE[1],
    "ppo": PALETTE[0],
    "sft": PALETTE[3],
}
_USED_IN = text(
    "WITH RECURSIVE learned (artifact_id) AS ("
    "SELECT f.artifact_id FROM artifacts f JOIN snapshot_members m ON m.snapshot_id = f.snapshot_id "
    "WHERE m.annotation_id = :annotation "
    "UNION SELECT p.artifact_id FROM artifact_parents p JOIN learned l ON l.artifact_id = p.parent_id) "
    "SELECT l.artifact_id FROM learned l JOIN artifacts f ON f.artifact_id = l.artifact_id "
    "ORDER BY f.created_at, f.artifact_id"
)
_RESTS_ON = text(
    "WITH RECURSIVE above (artifact_id) AS (SELECT :artifact "
    "UNION SELECT p.parent_id FROM artifact_parents p JOIN above a ON a.artifact_id = p.artifact_id) "
    "SELECT DISTINCT m.annotation_id FROM above a JOIN artifacts f ON f.artifact_id = a.artifact_id "
    "JOIN snapshot_members m ON m.snapshot_id = f.snapshot_id ORDER BY m.annotation_id"
)


@dataclass
class Node:
    """A thing and what it came from (or, read the other way, what came from it). role: what it was to its parent."""

    key: str
    kind: str
    label: str
    role: str = ""
    children: list[Node] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return {
            "id": self.key,
            "kind": self.kind,
            "label": self.label,
            "role": self.role,
            "children": [child.as_dict() for child in self.children],
        }


def run(config: LineageConfig, launch: Launch) -> None:
    """Print the tree, and write it to --out as a picture and as JSON where that is given."""
    workspace = Workspace(launch.workspace)
    with Store.open(launch.db, create=False) as store, store.read() as connection:
        trees = _trees(connection, Registry(store, workspace), config)
    for _, tree in trees:
        _shorten(tree, f"{workspace.root.as_posix()}/")
    print("\n\n".join(f"{title}\n{drawn(tree)}" for title, tree in trees))
    if launch.out is not None:
        launch.out.mkdir(parents=True, exist_ok=True)
        write_json(
            launch.out / "lineage.json", [{"title": title, "tree": tree.as_dict()} for title, tree in trees]
        )
        with atomic_file(launch.out / "lineage.svg") as file:
            file.write(picture(trees))
        print(f"\nlineage: written to {launch.out / 'lineage.svg'} and lineage.json")


def annotations_of(connection: Connection, artifact_id: str) -> list[str]:
    """The ids of all ratings that an artifact rests on, at any remove."""
    return list(connection.execute(_RESTS_ON, {"artifact": artifact_id}).scalars())


def used_in(connection: Connection, annotation_id: str) -> list[str]:
    """The ids of all artifacts that learned from a rating, at any remove, the oldest first."""
    return list(connection.execute(_USED_IN, {"annotation": annotation_id}).scalars())


def _trees(connection: Connection, registry: Registry, config: LineageConfig) -> list[tuple[str, Node]]:
    name = config.name
    annotation = annotations_table.c.annotation_id
    if connection.execute(select(annotation).where(annotation == name)).first() is not None:
        return [("learned from this rating", _from_rating(connection, name))]
    if (
        connection.execute(select(snapshots.c.snapshot_id).where(snapshots.c.snapshot_id == name)).first()
        is not None
    ):
        root = Node(name, SNAPSHOT, f"snapshot {name}", children=_learners(connection, name))
        return [
            ("learned from this snapshot", root),
            ("the snapshot came from", _snapshot(connection, name, config.annotations)),
        ]
    try:
        artifact = registry.find(connection, name)
    except DataError as error:
        raise DataError(f"{error} (and there is no snapshot or annotation of this id)") from error
    return [("came from", _above(connection, artifact.artifact_id, "", config.annotations, set()))]


def _node(
    connection: Connection, artifact_id: str, role: str, seen: set[str]
) -> tuple[Node, str | None, bool]:
    """(an artifact without its children, the snapshot it learned from, whether it is drawn for the first time)."""
    row = connection.execute(select(artifacts).where(artifacts.c.artifact_id == artifact_id)).one()
    node = Node(artifact_id, row.stage, f"{artifact_id}  {row.path}", role)
    is_new = artifact_id not in seen
    seen.add(artifact_id)
    if not is_new:
        node.label += "  (see above)"
    return node, row.snapshot_id, is_new


def _above(connection: Connection, artifact_id: str, role: str, limit: int, seen: set[str]) -> Node:
    """An artifact and its ancestors. One that was drawn before is named again without its own ancestors."""
    node, snapshot_id, is_new = _node(connection, artifact_id, role, seen)
    if not is_new:
        return node
    query = select(artifact_parents).where(artifact_parents.c.artifact_id == artifact_id)
    for link in connection.execute(
        query.order_by(artifact_parents.c.role, artifact_parents.c.parent_id)
    ).all():
        node.children.append(_above(connection, link.parent_id, link.role, limit, seen))
    if snapshot_id is not None:
        snapshot = _snapshot(connection, snapshot_id, 0 if snapshot_id in seen else limit)
        snapshot.role = SNAPSHOT
        seen.add(snapshot_id)
        node.children.append(snapshot)
    return node


def _snapshot(connection: Connection, snapshot_id: str, limit: int) -> Node:
    members = select(snapshot_members.c.annotation_id).where(snapshot_members.c.snapshot_id == snapshot_id)
    ids = list(connection.execute(members.order_by(snapshot_members.c.annotation_id)).scalars())
    path = connection.execute(select(snapshots.c.path).where(snapshots.c.snapshot_id == snapshot_id)).scalar()
    shown = ", ".join(ids[:limit]) + (", ..." if 0 < limit < len(ids) else "")
    ratings = Node(f"{snapshot_id}/ratings", RATINGS, f"{len(ids)} ratings{': ' if shown else ''}{shown}")
    return Node(snapshot_id, SNAPSHOT, f"snapshot {snapshot_id}  {path}", children=[ratings])


def _from_rating(connection: Connection, annotation_id: str) -> Node:
    query = select(snapshot_members.c.snapshot_id).where(snapshot_members.c.annotation_id == annotation_id)
    root = Node(annotation_id, RATINGS, f"rating {annotation_id}")
    for snapshot_id in connection.execute(query.order_by(snapshot_members.c.snapshot_id)).scalars():
        node = Node(
            snapshot_id, SNAPSHOT, f"snapshot {snapshot_id}", children=_learners(connection, snapshot_id)
        )
        root.children.append(node)
    return root


def _learners(connection: Connection, snapshot_id: str) -> list[Node]:
    """What learned from a snapshot, and below each run what was made with it."""
    query = select(artifacts.c.artifact_id).where(artifacts.c.snapshot_id == snapshot_id)
    ids = connection.execute(query.order_by(artifacts.c.created_at)).scalars().all()
    seen: set[str] = set()
    return [_below(connection, artifact_id, "", seen) for artifact_id in ids]


def _below(connection: Connection, artifact_id: str, role: str, seen: set[str]) -> Node:
    node, _, is_new = _node(connection, artifact_id, role, seen)
    if not is_new:
        return node
    query = select(artifact_parents).where(artifact_parents.c.parent_id == artifact_id)
    for link in connection.execute(
        query.order_by(artifact_parents.c.artifact_id, artifact_parents.c.role)
    ).all():
        node.children.append(_below(connection, link.artifact_id, f"as its {link.role}", seen))
    return node


def _shorten(node: Node, prefix: str) -> None:
    """Paths inside the workspace without the workspace."""
    node.label = node.label.replace(prefix, "")
    for child in node.children:
        _shorten(child, prefix)


# ---- shown --------------------------------------------------------------------------------------------------


def drawn(node: Node) -> str:
    """The tree as text."""
    lines = [node.label]
    _draw(node.children, "", lines)
    return "\n".join(lines)


def _draw(children: Sequence[Node], indent: str, lines: list[str]) -> None:
    for place, child in enumerate(children):
        last = place == len(children) - 1
        role = f"{child.role}: " if child.role else ""
        lines.append(f"{indent}{'└─ ' if last else '├─ '}{role}{child.label}")
        _draw(child.children, indent + ("   " if last else "│  "), lines)


def picture(trees: Sequence[tuple[str, Node]]) -> bytes:
    """The trees as one SVG: a line per node, indented by its depth, a dot in the colour of its kind."""
    rows: list[tuple[int, Node | None, str, int]] = []  # depth, node, text, row of its parent
    for title, tree in trees:
        rows.append((0, None, title, -1))
        _rows(tree, 0, -1, rows)
    height = 0.32 * len(rows) + 0.3
    with matplotlib.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": "lineage", "font.family": "sans-serif"}
    ):
        figure = Figure(figsize=(11, height))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_xlim(-0.4, 24)
        axes.set_ylim(len(rows) - 0.2, -0.8)
        axes.axis("off")
        for y, (depth, node, label, parent) in enumerate(rows):
            if node is None:
                axes.text(-0.2, y, label, color=INK, fontsize=10, fontweight="bold", va="center")
                continue
            if parent >= 0:
                axes.plot(
                    [depth - 1, depth - 1, depth], [parent, y, y], color=INK, linewidth=1, alpha=0.6, zorder=1
                )
            axes.plot(depth, y, "o", color=_COLORS.get(node.kind, INK), markersize=9, zorder=2)
            axes.text(depth + 0.35, y, label, color=INK, fontsize=9, va="center")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        return buffer.getvalue()


def _rows(node: Node, depth: int, parent: int, rows: list[tuple[int, Node | None, str, int]]) -> None:
    place = len(rows)
    rows.append((depth, node, f"{node.role}: {node.label}" if node.role else node.label, parent))
    for child in node.children:
        _rows(child, depth + 1, place, rows)
