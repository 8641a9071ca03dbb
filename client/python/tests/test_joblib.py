"""The joblib backend."""

import os

import joblib
import numpy as np
import pytest


def double(x):
    return 2 * x


def colour():
    return os.environ.get("COLOUR")


def fails(x):
    raise ValueError(f"no {x}")


def test_joblib(mesh):
    # Without a `parallel_config` before it.
    assert joblib.Parallel(n_jobs=2, backend="floe")(joblib.delayed(double)(i) for i in range(3)) == [0, 2, 4]
    with joblib.parallel_config(backend="floe"):
        assert joblib.Parallel()(joblib.delayed(double)(i) for i in range(200)) == [2 * i for i in range(200)]
        assert joblib.Parallel(n_jobs=2)(joblib.delayed(pow)(i, 2) for i in range(5)) == [0, 1, 4, 9, 16]
        results = joblib.Parallel(return_as="generator")(joblib.delayed(double)(i) for i in range(10))
        assert list(results) == [2 * i for i in range(10)]
        with pytest.raises(ValueError, match="no 3"):
            joblib.Parallel()(joblib.delayed(fails)(i) for i in [3] * 10)
    with joblib.parallel_config(backend="floe", env={"COLOUR": "red"}):
        assert joblib.Parallel()(joblib.delayed(colour)() for _ in range(3)) == ["red"] * 3


def test_large_arguments_travel_once(mesh, monkeypatch):
    puts = []
    put = mesh.put
    monkeypatch.setattr(mesh, "put", lambda value: puts.append(value) or put(value))
    array = np.random.default_rng(0).random(1 << 18)
    with joblib.parallel_config(backend="floe"):
        sums = joblib.Parallel()(
            joblib.delayed(lambda values, i: float(values[i]))(array, i) for i in range(50)
        )
    assert sums == array[:50].tolist() and len(puts) == 1


def test_nested(mesh):
    def outer(n):
        return sum(joblib.Parallel(n_jobs=2)(joblib.delayed(double)(i) for i in range(n)))

    with joblib.parallel_config(backend="floe"):
        assert joblib.Parallel()(joblib.delayed(outer)(n) for n in range(6)) == [
            n * (n - 1) for n in range(6)
        ]


def test_grid_search(mesh):
    from sklearn.datasets import make_classification
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import GridSearchCV, cross_val_score

    X, y = make_classification(600, random_state=0)
    grid = {"max_depth": [2, 4], "n_estimators": [5, 10]}
    search = GridSearchCV(RandomForestClassifier(random_state=0), grid, cv=3)
    with joblib.parallel_config(backend="floe"):
        there = search.fit(X, y).cv_results_["mean_test_score"].copy()
        scores = cross_val_score(RandomForestClassifier(random_state=0), X, y)
    here = (
        GridSearchCV(RandomForestClassifier(random_state=0), grid, cv=3)
        .fit(X, y)
        .cv_results_["mean_test_score"]
    )
    np.testing.assert_array_equal(there, here)
    np.testing.assert_array_equal(scores, cross_val_score(RandomForestClassifier(random_state=0), X, y))
