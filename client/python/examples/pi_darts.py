"""π by throwing darts. What the function imports is said beside it, as IPython's `require` has it."""

import floe

THROWS = 200_000
ROUNDS = 24


@floe.require("random")
def hits(seed):
    """How many of the darts meet the quarter of a circle."""
    dice = random.Random(seed)  # noqa: F821
    return sum(dice.random() ** 2 + dice.random() ** 2 <= 1 for _ in range(THROWS))


def main():
    with floe.connect() as mesh:
        total = sum(mesh.map(hits, range(ROUNDS), ordered=False).wait_interactive())
    pi = 4 * total / (THROWS * ROUNDS)
    print(f"π is about {pi}")
    # The seeds are always the same, and so are the darts.
    assert abs(pi - 3.14159) < 0.005


if __name__ == "__main__":
    main()
