//! Operators of an optimized plan as a mesh runs them, where Polars' optimizer chose for one process.

use polars_plan::dsl::FileScanIR;
use polars_plan::plans::IR;

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
