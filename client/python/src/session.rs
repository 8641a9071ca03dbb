//! `Session`: many short calls.

use std::time::{Duration, Instant};

use floe_client::{CallOutcome, NodeId};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyString};

use crate::bytes::{parsed, taken};
use crate::closing::Closing;
use crate::error::{parts_of, raised};
use crate::function::Function;
use crate::mesh::seconds;
use crate::runtime::{Own, SIGNAL_INTERVAL, wait};

/// A standing job in which functions are called.
#[pyclass(frozen, module = "floe._core")]
pub(crate) struct Session {
    session: Own<floe_client::Session>,
    closing: Own<Closing>,
}

impl Session {
    pub(crate) fn new(session: floe_client::Session, closing: Closing) -> Self {
        Self { session: Own::new(session), closing: Own::new(closing) }
    }
}

/// Id, whether it returned, what it returned, kind and sentence and details if it did not, node, microseconds.
type ResultTuple<'py> = (
    u64,
    bool,
    Bound<'py, PyBytes>,
    Option<(&'static str, String, Bound<'py, PyDict>)>,
    Bound<'py, PyString>,
    u64,
);

#[pymethods]
impl Session {
    #[getter]
    fn id(&self) -> PyResult<String> {
        Ok(self.session.get()?.id().to_string())
    }

    /// Makes a function known: the number that calls name it by.
    fn define(&self, py: Python<'_>, function: &Function) -> PyResult<u32> {
        let function = function.protocol();
        let session = self.session.get()?;
        self.closing.get()?.wait(py, session.define(function))?.map_err(|error| raised(py, error))
    }

    /// Calls a function, on any node or on the one of this id. Does not wait.
    #[pyo3(signature = (function, id, argument, node=None))]
    fn call(
        &self,
        py: Python<'_>,
        function: u32,
        id: u64,
        argument: &Bound<'_, PyAny>,
        node: Option<&str>,
    ) -> PyResult<()> {
        let node = node.map(parsed::<NodeId>).transpose()?;
        self.session.get()?.call(function, id, taken(argument)?, node).map_err(|error| raised(py, error))
    }

    /// The results that have come, at least one: waits for it up to `timeout` seconds.
    fn results<'py>(&self, py: Python<'py>, timeout: f64) -> PyResult<Bound<'py, PyList>> {
        let results = self.wait_results(py, seconds(timeout)?)?;
        let list = PyList::empty(py);
        let nothing = PyBytes::new(py, &[]);
        // Results come in groups of one node.
        let mut node = None;
        let mut node_text = PyString::new(py, "");
        for result in results {
            if result.node != node {
                node = result.node;
                node_text = PyString::new(py, &node.map_or_else(String::new, |node| node.to_string()));
            }
            list.append(tuple_of(py, result, &nothing, &node_text)?)?;
        }
        Ok(list)
    }

    /// Says that these functions will not be called any more.
    fn forget(&self, functions: Vec<u32>) {
        // In a forked child there is nothing to say it to.
        if let Ok(session) = self.session.get() {
            session.forget(&functions);
        }
    }

    /// Does without the results of these calls.
    fn cancel(&self, ids: Vec<u64>) -> PyResult<()> {
        self.session.get()?.cancel(&ids);
        Ok(())
    }

    /// Ends it.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        wait(py, self.session.get()?.close())?.map_err(|error| raised(py, error))
    }
}

impl Session {
    fn wait_results(&self, py: Python<'_>, timeout: Duration) -> PyResult<Vec<CallOutcome>> {
        let session = self.session.get()?;
        let deadline = Instant::now().checked_add(timeout);
        loop {
            let left = deadline.map_or(SIGNAL_INTERVAL, |deadline| {
                deadline.saturating_duration_since(Instant::now()).min(SIGNAL_INTERVAL)
            });
            let results = py.detach(|| session.wait_results(left)).map_err(|error| raised(py, error))?;
            if !results.is_empty() || deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                return Ok(results);
            }
            py.check_signals()?;
        }
    }
}

fn tuple_of<'py>(
    py: Python<'py>,
    result: CallOutcome,
    nothing: &Bound<'py, PyBytes>,
    node: &Bound<'py, PyString>,
) -> PyResult<ResultTuple<'py>> {
    let CallOutcome { id, outcome, elapsed_us, .. } = result;
    Ok(match outcome {
        Ok(body) => (id, true, PyBytes::new(py, &body), None, node.clone(), elapsed_us),
        Err(failure) => {
            let parts = parts_of(&failure);
            let details = parts.details(py)?;
            let error = Some((parts.kind, parts.message, details));
            (id, false, nothing.clone(), error, node.clone(), elapsed_us)
        }
    })
}
