//! Many short calls: primes with futures, over a stream, and counted by map and reduce. No data frames here.
//!
//! Start a node with `floe up`, then:
//!
//! ```text
//! cargo run -p floe-client --example primes
//! ```

#![allow(clippy::print_stdout)]

use std::ops::Range;

use floe_client::Mesh;
use floe_client::native::Part;
use futures::TryStreamExt;

/// The primes below a number.
fn primes(below: u64) -> Vec<u64> {
    (2..below).filter(|n| is_prime(*n)).collect()
}

/// A number's smallest factor; the error says that it has none.
fn smallest_factor(n: u64) -> Result<u64, String> {
    (2..n).take_while(|d| d * d <= n).find(|d| n.is_multiple_of(*d)).ok_or_else(|| format!("{n} is a prime"))
}

/// How many primes a part of a range has. The range travels, the numbers do not.
fn count_primes(part: Part<Range<u64>>) -> u64 {
    part.read().filter(|n| is_prime(*n)).count() as u64
}

fn total(counts: Vec<u64>) -> u64 {
    counts.into_iter().sum()
}

fn is_prime(n: u64) -> bool {
    n > 1 && (2..).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // First of all: on the nodes, this is where the functions are called, and what follows is never reached.
    floe_client::functions![primes, smallest_factor, count_primes, total];

    let mesh = connect().await?;
    // Each call is on its way at once, and a future.
    let on_mesh = mesh.parallel(primes).await?;
    let replies: Vec<_> = (100..200).map(|below| on_mesh.call(below)).collect();
    let found = futures::future::try_join_all(replies).await?;
    println!("there are {} primes below 199", found.last().map_or(0, Vec::len));
    assert!((100..200).zip(&found).all(|(below, found)| *found == primes(below)));

    // A stream, in order; items are taken as the nodes get on with them.
    let factors: Vec<u64> = mesh.try_map(smallest_factor, (4..20_000).step_by(2)).try_collect().await?;
    assert!(factors.len() == 9998 && factors.iter().all(|factor| *factor == 2));

    // What a function refuses is the failure of its call.
    let factor = mesh.try_parallel(smallest_factor).await?;
    let refused = factor.call(7919).await;
    let refusal = refused.err().map(|error| error.to_string()).unwrap_or_default();
    println!("{refusal}");
    assert!(refusal.contains("7919 is a prime"));

    let count = mesh.map_reduce(0..1_000_000, count_primes, total).await?;
    println!("there are {count} primes below a million");
    assert_eq!(count, 78_498);
    on_mesh.close().await?;
    factor.close().await?;
    Ok(())
}

/// Any node will do: one that FLOE_CONNECT names, or one of this machine.
async fn connect() -> floe_client::Result<Mesh> {
    match std::env::var("FLOE_CONNECT") {
        Ok(addresses) if !addresses.is_empty() => Mesh::connect(addresses.split(',')).await,
        _ => Mesh::local().await,
    }
}
