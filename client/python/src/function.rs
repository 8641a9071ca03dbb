//! Functions as Python describes them.

use std::collections::BTreeMap;

use bytes::Bytes;
use floe_client::function::{self as protocol, Host, Limits, Payload, Python as Interpreter};
use pyo3::prelude::*;

use crate::bytes::{blob_of, taken};

/// A pickled function and what it takes to call it.
#[pyclass(frozen, module = "floe._core")]
pub(crate) struct Function {
    function: protocol::Function,
}

#[pymethods]
impl Function {
    /// `modules` are blobs of zip archives; `libraries` maps installed distributions to the driver's versions.
    #[new]
    #[pyo3(signature = (
        name, version, requirements, modules, env, libraries, code, memory_bytes=None, time_ms=None
    ))]
    #[expect(clippy::too_many_arguments, reason = "they are keywords in Python")]
    fn new(
        name: String,
        version: String,
        requirements: Vec<String>,
        modules: Vec<(String, u64)>,
        env: BTreeMap<String, String>,
        libraries: BTreeMap<String, String>,
        code: &Bound<'_, PyAny>,
        memory_bytes: Option<u64>,
        time_ms: Option<u64>,
    ) -> PyResult<Self> {
        let modules =
            modules.iter().map(|(id, bytes)| blob_of((id, *bytes))).collect::<PyResult<Vec<_>>>()?;
        let host = Host::Python(Interpreter { version, requirements, modules, env, libraries });
        let code = Payload::Inline(taken(code)?);
        let limits = Limits { memory_bytes, time_ms };
        Ok(Self { function: protocol::Function { name, host, code, limits } })
    }

    #[getter]
    fn name(&self) -> &str {
        &self.function.name
    }

    fn __repr__(&self) -> String {
        let code: &Payload = &self.function.code;
        format!("<floe._core.Function {}, {} bytes>", self.function.name, code.bytes())
    }
}

impl Function {
    pub(crate) fn protocol(&self) -> protocol::Function {
        self.function.clone()
    }
}

/// An inline payload.
pub(crate) fn payload(bytes: Bytes) -> protocol::Argument {
    protocol::Argument::Payload(Payload::Inline(bytes))
}
