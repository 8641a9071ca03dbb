"""CSV files cleaned up, each by a node that sees it; the good lines are written beside it."""

import tempfile
from pathlib import Path

import floe


def clean(path):
    """Writes the good lines of one file, and says how many there were and are."""
    import csv
    from pathlib import Path

    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    good = []
    for row in rows:
        try:
            good.append({"station": row["station"].strip().upper(), "degrees": float(row["degrees"])})
        except ValueError:
            pass
    target = Path(path).with_suffix(".clean")
    # A task may run twice, when its node is lost: whoever reads must never see half a file.
    draft = target.with_suffix(f".{id(good):x}")
    with open(draft, "w", newline="") as file:
        writer = csv.DictWriter(file, ["station", "degrees"])
        writer.writeheader()
        writer.writerows(good)
    draft.replace(target)
    return Path(path).name, len(rows), len(good)


def main():
    with tempfile.TemporaryDirectory() as directory:
        for day in range(12):
            lines = ["station,degrees"] + [
                f" st{i % 7} ,{'n/a' if i % 10 == day % 10 else i / 10}" for i in range(500)
            ]
            Path(directory, f"day{day:02}.csv").write_text("\n".join(lines) + "\n")
        with floe.connect() as mesh:
            done = mesh.map_files(f"{directory}/*.csv", clean).collect()
        cleaned = sorted(Path(directory).glob("*.clean"))
        first = cleaned[0].read_text().splitlines()[:2]

    lines, kept = (sum(column) for column in list(zip(*done))[1:])
    print(f"{len(done)} files, {kept} of {lines} lines are good")
    assert [name for name, _, _ in done] == [f"day{day:02}.csv" for day in range(12)]
    assert all(rows == 500 and good == 450 for _, rows, good in done)
    assert len(cleaned) == 12 and first == ["station,degrees", "ST1,0.1"]


if __name__ == "__main__":
    main()
