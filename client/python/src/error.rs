//! Errors on their way to Python: a kind, a sentence, details.

use floe_client::{Error, Failure};
use pyo3::create_exception;
use pyo3::exceptions::PyException;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

create_exception!(
    floe._core,
    CoreError,
    PyException,
    "Something asked of the mesh did not work. `kind` names what, `details` holds what is known besides."
);

/// An error in parts.
pub(crate) struct Parts {
    pub(crate) kind: &'static str,
    pub(crate) message: String,
    details: Vec<(&'static str, Detail)>,
}

enum Detail {
    Text(String),
    Bytes(bytes::Bytes),
}

impl Parts {
    pub(crate) fn new(kind: &'static str, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), details: Vec::new() }
    }

    fn with(mut self, key: &'static str, text: impl ToString) -> Self {
        self.details.push((key, Detail::Text(text.to_string())));
        self
    }

    pub(crate) fn details<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let details = PyDict::new(py);
        for (key, detail) in &self.details {
            match detail {
                Detail::Text(text) => details.set_item(key, text)?,
                Detail::Bytes(bytes) => details.set_item(key, PyBytes::new(py, bytes))?,
            }
        }
        Ok(details)
    }

    pub(crate) fn into_error(self, py: Python<'_>) -> PyErr {
        let raise = || {
            let error = CoreError::new_err(self.message.clone());
            let value = error.value(py);
            value.setattr("kind", self.kind)?;
            value.setattr("details", self.details(py)?)?;
            Ok(error)
        };
        raise().unwrap_or_else(|error| error)
    }
}

/// The error of something that failed on this side.
pub(crate) fn local(message: impl Into<String>) -> PyErr {
    Python::attach(|py| Parts::new("local", message).into_error(py))
}

/// An error of the client as Python's.
pub(crate) fn raised(py: Python<'_>, error: Error) -> PyErr {
    parts_of_error(error).into_error(py)
}

fn parts_of_error(error: Error) -> Parts {
    let message = error.to_string();
    match error {
        Error::Failure(failure) => parts_of(&failure),
        Error::JobFailed { job, failure } => parts_of(&failure).with("job", job),
        Error::SessionEnded { session, failure } => {
            Parts { message, ..parts_of(&failure) }.with("job", session)
        }
        Error::JobCancelled { job } => Parts::new("cancelled", message).with("job", job),
        Error::Unreachable { .. } => Parts::new("unreachable", message),
        Error::Refused(_) => Parts::new("refused", message),
        Error::Unavailable { failure: Failure::Busy { .. }, .. } => Parts::new("busy", message),
        Error::Unavailable { .. } => Parts::new("unavailable", message),
        Error::ResultChanged { job } => Parts::new("result_changed", message).with("job", job),
        Error::Malformed { .. } => Parts::new("internal", message),
        _ => Parts::new("local", message),
    }
}

/// A failure in parts.
pub(crate) fn parts_of(failure: &Failure) -> Parts {
    let text = failure.to_string();
    match failure {
        Failure::Query { .. } => Parts::new("query", text),
        Failure::Unseen { path, looked } => {
            Parts::new("unseen", text).with("path", path).with("looked", looked)
        }
        Failure::Exception { name, message, traceback, exception } => {
            let mut parts = Parts::new("exception", text)
                .with("name", name)
                .with("message", message)
                .with("traceback", traceback);
            parts.details.push(("exception", Detail::Bytes(exception.clone())));
            parts
        }
        Failure::Crashed { name, how, output } => {
            Parts::new("crashed", text).with("name", name).with("how", how).with("output", output)
        }
        Failure::Limit { name, what, message } => {
            Parts::new("limit", text).with("name", name).with("what", what).with("message", message)
        }
        Failure::NoneFits { needs, looked } => {
            Parts::new("unfit", text).with("needs", needs).with("looked", looked)
        }
        Failure::Unfit { needs, why } => Parts::new("unfit", text).with("needs", needs).with("looked", why),
        Failure::Blind { path, why } => Parts::new("unseen", text).with("path", path).with("looked", why),
        Failure::InputLost { partition, node } => {
            Parts::new("lost", text).with("partition", partition).with("node", node)
        }
        Failure::SubmissionLost { partition, node } => {
            let parts = Parts::new("lost", text).with("node", node);
            match partition {
                Some(partition) => parts.with("partition", partition),
                None => parts,
            }
        }
        Failure::NodeLost { node } => Parts::new("lost", text).with("node", node),
        Failure::Exhausted { what, .. } => Parts::new("exhausted", text).with("what", what),
        Failure::Version { .. } => Parts::new("version", text),
        Failure::Cancelled => Parts::new("cancelled", text),
        Failure::Unavailable { .. } => Parts::new("unavailable", text),
        Failure::Busy { .. } => Parts::new("busy", text),
        Failure::Freed { job, .. } => Parts::new("freed", text).with("job", job),
        Failure::NoSuchJob { job } => Parts::new("no_such_job", text).with("job", job),
        // Of these two, no driver hears the second: only nodes that come back are told.
        Failure::Refused { .. } | Failure::Superseded { .. } => Parts::new("refused", text),
        Failure::Foreign { .. } => Parts::new("foreign", text),
        Failure::Internal { .. } => Parts::new("internal", text),
    }
}
