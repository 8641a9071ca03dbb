"""A function of a pandas frame, over partitions on every node: the area of iris petals."""

from sklearn.datasets import load_iris

import floe


def area(flowers):
    return flowers.assign(petal_area=flowers["petal length (cm)"] * flowers["petal width (cm)"])


def main():
    iris = load_iris(as_frame=True).frame
    with floe.connect() as mesh:
        job = mesh.parallelize(iris, area, 10)
        flowers = job.wait_interactive().collect()

        # The largest of each partition, of which the nodes make the largest of all.
        largest = mesh.parallelize(
            flowers,
            lambda part: part.nlargest(1, "petal_area"),
            10,
            merge=lambda parts: max(parts, key=lambda part: part["petal_area"].iloc[0]),
        ).collect()

    print(flowers.groupby("target")["petal_area"].mean())
    print(largest)
    assert flowers.equals(area(iris))
    assert largest.index[0] == 118 and abs(largest["petal_area"].iloc[0] - 15.87) < 1e-9


if __name__ == "__main__":
    main()
