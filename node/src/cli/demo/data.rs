//! The flights that left New York in 2013 (nycflights13, CC0), which the binary carries with it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;

/// How many flights there are.
pub(super) const FLIGHTS: u64 = 336_776;

const FLIGHTS_FILE: &[u8] = include_bytes!("../../../../scenarios/data/nycflights13/flights.parquet");
const AIRLINES_FILE: &[u8] = include_bytes!("../../../../scenarios/data/nycflights13/airlines.parquet");

/// Where the tables lie.
#[derive(Debug)]
pub(super) struct Paths {
    pub(super) flights: PathBuf,
    pub(super) airlines: PathBuf,
}

/// Writes the tables under `home`.
pub(super) fn write(home: &Path) -> anyhow::Result<Paths> {
    let directory = home.join("data");
    fs::create_dir_all(&directory).with_context(|| unwritable(&directory))?;
    let (flights, airlines) = (directory.join("flights.parquet"), directory.join("airlines.parquet"));
    fs::write(&flights, FLIGHTS_FILE).with_context(|| unwritable(&flights))?;
    fs::write(&airlines, AIRLINES_FILE).with_context(|| unwritable(&airlines))?;
    Ok(Paths { flights, airlines })
}

/// Makes `copies` files of the flights and returns the pattern that matches them.
pub(super) fn copy(home: &Path, copies: usize) -> anyhow::Result<PathBuf> {
    let directory = home.join("data").join("many");
    fs::create_dir_all(&directory).with_context(|| unwritable(&directory))?;
    let original = home.join("data").join("flights.parquet");
    for number in 0..copies {
        let copy = directory.join(format!("{number:03}.parquet"));
        if !copy.exists() {
            // A link costs no space and reads the same; where there are no links, a copy does it.
            fs::hard_link(&original, &copy)
                .or_else(|_| fs::copy(&original, &copy).map(drop))
                .with_context(|| unwritable(&copy))?;
        }
    }
    Ok(directory.join("*.parquet"))
}

fn unwritable(path: &Path) -> String {
    format!("{} cannot be written", path.display())
}
