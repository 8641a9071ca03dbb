//! Operators of an optimized plan as a mesh runs them, where Polars' optimizer chose for one process.

use std::sync::Arc;

use polars::prelude::*;
use polars_plan::dsl::FileScanIR;
use polars_plan::plans::IR;

/// A join that puts out its rows in the order in which Polars' in-memory engine always does, where the streaming
/// engine need not: by the rows of the left side and then of the right, for a right join the other way round.
///
/// An inequality join of one bound is given to the in-memory kernel, as the streaming engine itself does with those
/// of unrelated bounds. A range, a column between two bounds, stays with the streaming engine, in its order.
pub(crate) fn in_order(mut ir: IR) -> IR {
    let IR::Join { left_on, right_on, options, .. } = &mut ir else {
        return ir;
    };
    let one_bound = left_on.len() == 1 && right_on.len() == 1;
    let args = &mut Arc::make_mut(options).args;
    // An order that was asked for stays, and so does a side that was chosen for what it costs.
    let free = args.maintain_order == MaintainOrderJoin::None && args.build_side.is_none();
    match args.how {
        JoinType::Range if one_bound => args.how = JoinType::IEJoin,
        JoinType::Cross | JoinType::Left if free => args.maintain_order = MaintainOrderJoin::LeftRight,
        JoinType::Right if free => args.maintain_order = MaintainOrderJoin::RightLeft,
        _ => {}
    }
    ir
}

/// Takes out what the planner read of a scan's files. It is read again where the scan runs: a plan that is written
/// keeps a part of it only, without the types that Parquet's own do not tell apart.
pub(crate) fn forget_metadata(ir: &mut IR) {
    let IR::Scan { scan_type, .. } = ir else {
        return;
    };
    match &mut **scan_type {
        FileScanIR::Parquet { first_metadata, metadata_per_source, .. } => {
            *first_metadata = None;
            *metadata_per_source = None;
        }
        FileScanIR::Ipc { metadata, .. } => *metadata = None,
        _ => {}
    }
}
