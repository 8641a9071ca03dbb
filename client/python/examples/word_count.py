"""Words of some texts, counted: a function of each partition of a list, merged as a tree on the nodes."""

import collections
import re

import floe

VERSES = [
    "Row, row, row your boat,",
    "gently down the stream.",
    "Merrily, merrily, merrily, merrily,",
    "life is but a dream.",
]


def count(lines):
    return collections.Counter(word for line in lines for word in re.findall(r"\w+", line.lower()))


def add(counts):
    return sum(counts, collections.Counter())


def main():
    text = VERSES * 1000
    with floe.connect() as mesh:
        words = mesh.parallelize(text, count, 20, merge=add, fan_in=4).collect()
    print(words.most_common(3))
    assert words == count(text)
    assert words.most_common(2) == [("merrily", 4000), ("row", 3000)]


if __name__ == "__main__":
    main()
