//! Queries planned, cut and run as a mesh would run them, compared with Polars on one machine.
#![allow(clippy::unwrap_used)]

mod bad_input;
mod corpus;
mod data;
mod deep;
mod explained;
mod front_end;
mod mesh;
mod paths;
mod process;
mod random;
mod same;
mod sqllogic;
mod standard;
mod tpch;
mod versions;
