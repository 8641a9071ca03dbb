"""scikit-learn's own GridSearchCV, on the mesh through joblib. Nothing in it knows of Floe."""

import joblib
from sklearn.datasets import load_iris
from sklearn.model_selection import GridSearchCV
from sklearn.svm import SVC

import floe  # before joblib is told of the backend "floe"


def main():
    iris = load_iris()
    grid = {"C": [0.1, 1, 10, 100], "gamma": [0.01, 0.1, 1]}
    search = GridSearchCV(SVC(), grid, cv=5)
    with floe.connect():
        with joblib.parallel_config(backend="floe"):
            search.fit(iris.data, iris.target)
    print(f"{search.best_params_} is right in {search.best_score_:.1%} of the cases")

    here = GridSearchCV(SVC(), grid, cv=5).fit(iris.data, iris.target)
    assert search.best_params_ == here.best_params_ and search.best_score_ == here.best_score_
    assert (search.cv_results_["mean_test_score"] == here.cv_results_["mean_test_score"]).all()


if __name__ == "__main__":
    main()
