//! Bytes between Python and the client.

use bytes::Bytes;
use floe_client::{Blob, BlobId};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::PyBytes;

/// Up to this size copying is cheaper than keeping the Python object until its bytes are sent.
const MAX_COPIED_BYTES: usize = 32 << 10;

/// The bytes of a Python object, without copying large ones that are `bytes` or a buffer of pyarrow's.
pub(crate) fn taken(object: &Bound<'_, PyAny>) -> PyResult<Bytes> {
    if let Some(buffer) = ArrowBuffer::of(object)? {
        return Ok(Bytes::from_owner(buffer));
    }
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

/// A buffer of pyarrow's.
struct ArrowBuffer {
    address: usize,
    bytes: usize,
    /// For as long as it lives, the bytes are there.
    _owner: Py<PyAny>,
}

impl ArrowBuffer {
    fn of(object: &Bound<'_, PyAny>) -> PyResult<Option<Self>> {
        let of_pyarrow = object.get_type().module()?.to_str()? == "pyarrow.lib";
        if !of_pyarrow || !object.hasattr("address")? {
            return Ok(None);
        }
        let address = object.getattr("address")?.extract()?;
        let bytes = object.getattr("size")?.extract()?;
        Ok(Some(Self { address, bytes, _owner: object.clone().unbind() }))
    }
}

impl AsRef<[u8]> for ArrowBuffer {
    fn as_ref(&self) -> &[u8] {
        if self.bytes == 0 {
            return &[];
        }
        // SAFETY: pyarrow says that so many bytes are there while their owner lives. Arrow's buffers do not move, and
        // those that come here were filled by this package before, which keeps none of them.
        unsafe { std::slice::from_raw_parts(self.address as *const u8, self.bytes) }
    }
}

/// Bytes that Python looks at where they are. (The stable interface of Python 3.10 has no buffers of one's own.)
#[pyclass(frozen, module = "floe._core")]
pub(crate) struct Buffer(Bytes);

impl Buffer {
    pub(crate) fn new(bytes: Bytes) -> Self {
        Self(bytes)
    }
}

#[pymethods]
impl Buffer {
    /// Where they are, for as long as this object lives.
    #[getter]
    fn address(&self) -> usize {
        self.0.as_ptr() as usize
    }

    fn __len__(&self) -> usize {
        self.0.len()
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
