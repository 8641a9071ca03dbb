//! Bytes between Python and the client.

use bytes::Bytes;
use floe_client::{Blob, BlobId};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::PyBytes;

/// Up to this size copying is cheaper than keeping the Python object until its bytes are sent.
const MAX_COPIED_BYTES: usize = 32 << 10;

/// The bytes of a Python object, without copying large ones that are `bytes`.
pub(crate) fn taken(object: &Bound<'_, PyAny>) -> PyResult<Bytes> {
    match object.cast::<PyBytes>() {
        Ok(bytes) if bytes.as_bytes().len() <= MAX_COPIED_BYTES => {
            Ok(Bytes::copy_from_slice(bytes.as_bytes()))
        }
        Ok(bytes) => Ok(Bytes::from_owner(PyBackedBytes::from(bytes.clone()))),
        Err(_) => {
            // A bytearray or a memoryview may change later, so it is copied.
            let bytes = object.py().get_type::<PyBytes>().call1((object,))?;
            Ok(Bytes::from_owner(PyBackedBytes::from(bytes.cast_into::<PyBytes>()?)))
        }
    }
}

/// A blob as Python holds it: digest in hexadecimal digits, and size.
pub(crate) fn blob_of((id, bytes): (&str, u64)) -> PyResult<Blob> {
    Ok(Blob { id: parsed::<BlobId>(id)?, bytes })
}

/// An id from its text.
pub(crate) fn parsed<T>(text: &str) -> PyResult<T>
where
    T: std::str::FromStr<Err: std::fmt::Display>,
{
    text.parse().map_err(|error: T::Err| PyValueError::new_err(error.to_string()))
}
