//! `floe._core`: what the Python package `floe` is built on. A thin layer over `floe-client`, in which everything
//! that waits lets other Python threads run and notices Ctrl-C.
//!
//! All knowledge of pickling, pandas and the like is in Python; here are bytes.

mod bytes;
mod closing;
mod error;
mod function;
mod job;
mod mesh;
mod runtime;
mod session;

use pyo3::prelude::*;

#[pymodule]
mod _core {
    #[pymodule_export]
    use crate::error::CoreError;
    #[pymodule_export]
    use crate::function::Function;
    #[pymodule_export]
    use crate::job::{Job, Logs, Partitions};
    #[pymodule_export]
    use crate::mesh::Mesh;
    #[pymodule_export]
    use crate::session::Session;

    use pyo3::prelude::*;
    use pyo3::types::IntoPyDict;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))?;
        // Python tells whoever wants to know that it was forked; that comes before other things of its own that do.
        let py = module.py();
        let told = wrap_pyfunction!(was_forked, module)?;
        let how = [("after_in_child", told)].into_py_dict(py)?;
        py.import("os")?.call_method("register_at_fork", (), Some(&how))?;
        Ok(())
    }

    #[pyfunction]
    #[pyo3(name = "_was_forked")]
    fn was_forked() {
        crate::runtime::was_forked();
    }
}
