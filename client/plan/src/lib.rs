//! Polars' own encoding of plans, for drivers and nodes.
//!
//! Polars' functions for it are generic over what they write to and read from, and each use of them compiles thousands
//! of functions anew: the code for every type that a plan is made of. So they are used here, once, and nowhere else.
//!
//! All of it is MessagePack with names: frames and long literals within plans are byte strings, which not every format
//! of serde's reads back.

use polars::prelude::{LazyFrame, PolarsResult};
use polars_plan::dsl::{DslPlan, PlanSerializationContext};
use polars_plan::plans::IRPlan;
use polars_utils::pl_serialize;

/// A query as bytes. Polars refuses what cannot be sent, like a closure.
pub fn encode(query: &LazyFrame) -> PolarsResult<Vec<u8>> {
    let mut bytes = Vec::new();
    query.logical_plan.serialize_versioned(&mut bytes, PlanSerializationContext::default())?;
    Ok(bytes)
}

/// A query from bytes. Polars may panic on some that it did not write itself.
pub fn decode(bytes: &[u8]) -> PolarsResult<LazyFrame> {
    DslPlan::deserialize_versioned(bytes).map(LazyFrame::from)
}

/// An optimized plan as bytes. Polars refuses what cannot be sent, like a closure.
pub fn encode_ir(plan: &IRPlan) -> PolarsResult<Vec<u8>> {
    pl_serialize::serialize_to_bytes::<_, true>(plan)
}

/// An optimized plan from bytes.
pub fn decode_ir(bytes: &[u8]) -> PolarsResult<IRPlan> {
    pl_serialize::deserialize_from_reader::<_, _, true>(bytes)
}
