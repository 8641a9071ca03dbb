//! The functions that this process can call for others, by name.

use std::any::TypeId;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::wire::Raised;

/// The functions of this process. Registering is done once, at the beginning of `main`.
static FUNCTIONS: Mutex<Registry> = Mutex::new(Registry::new());

/// The ways in which a function can be called. One function may allow several: the call says which it wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shape {
    /// From one frame to a frame.
    Frame,
    /// From a list of frames to a frame.
    Merge,
    /// From a value to a value.
    Value,
    /// From a value to a value or an error.
    Fallible,
}

impl Shape {
    const ALL: [Self; 4] = [Self::Frame, Self::Merge, Self::Value, Self::Fallible];

    fn name(self) -> &'static str {
        match self {
            Self::Frame => "frame",
            Self::Merge => "merge",
            Self::Value => "value",
            Self::Fallible => "fallible",
        }
    }
}

/// A function without its types.
pub(super) enum Callable {
    /// From Arrow IPC files to one.
    #[cfg_attr(not(feature = "polars"), expect(dead_code, reason = "Polars reads and writes the frames"))]
    Frames(Box<FramesFunction>),
    /// From CBOR to CBOR.
    Value(Box<ValueFunction>),
}

type FramesFunction = dyn Fn(Vec<Vec<u8>>) -> Result<FrameFile, Raised> + Send + Sync;
type ValueFunction = dyn Fn(&[u8]) -> Result<Vec<u8>, Raised> + Send + Sync;

impl fmt::Debug for Callable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Frames(_) => "Frames",
            Self::Value(_) => "Value",
        })
    }
}

/// A frame, written.
#[derive(Debug)]
pub(super) struct FrameFile {
    /// An Arrow IPC file.
    pub(super) file: Vec<u8>,
    /// Its rows.
    pub(super) rows: u64,
}

/// Functions by shape and name.
#[derive(Debug)]
pub(super) struct Registry {
    entries: BTreeMap<(Shape, &'static str), Entry>,
}

#[derive(Debug)]
struct Entry {
    callable: Arc<Callable>,
    /// The function itself, to notice two of one name; nothing once that happened.
    function: Option<TypeId>,
}

impl Registry {
    pub(super) const fn new() -> Self {
        Self { entries: BTreeMap::new() }
    }

    /// Adds a function. Of two with one name, none can be called: they could not be told apart on a node.
    pub(super) fn add(&mut self, shape: Shape, name: &'static str, function: TypeId, callable: Callable) {
        let entry = Entry { callable: Arc::new(callable), function: Some(function) };
        let before = self.entries.entry((shape, name)).or_insert(entry);
        if before.function != Some(function) {
            before.function = None;
        }
    }

    /// The code that names a function to this executable's other processes.
    pub(super) fn code(
        &self,
        shape: Shape,
        name: &'static str,
        function: TypeId,
    ) -> Result<String, NotRegistered> {
        match self.entries.get(&(shape, name)).map(|entry| entry.function) {
            Some(Some(registered)) if registered == function => Ok(format!("{} {name}", shape.name())),
            Some(_) => Err(NotRegistered::Ambiguous { name }),
            None if name.contains("{{closure}}") => Err(NotRegistered::Closure { name }),
            None => Err(NotRegistered::Missing { name, short: short(name).to_owned() }),
        }
    }

    /// The function that some code names.
    pub(super) fn get(&self, code: &[u8]) -> Result<Arc<Callable>, String> {
        let text = String::from_utf8_lossy(code);
        let unknown = || format!("this executable registers no function `{text}`");
        let (shape, name) = text.split_once(' ').ok_or_else(unknown)?;
        let shape = Shape::ALL.into_iter().find(|known| known.name() == shape).ok_or_else(unknown)?;
        let entry = self.entries.iter().find(|((known, called), _)| *known == shape && *called == name);
        entry.map(|(_, entry)| entry.callable.clone()).ok_or_else(unknown)
    }
}

/// The functions of this process.
pub(super) fn functions() -> MutexGuard<'static, Registry> {
    // Every step leaves it whole.
    FUNCTIONS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why a function cannot be called on the nodes.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotRegistered {
    #[error(
        "the nodes do not know the function {name}: put `floe_client::functions![{short}];` at the beginning \
         of main, with every function that is to run on the mesh"
    )]
    Missing { name: &'static str, short: String },
    #[error(
        "{name} is a closure, which cannot travel: make it a function, and put it into \
         `floe_client::functions![...]` at the beginning of main"
    )]
    Closure { name: &'static str },
    #[error(
        "two different functions are called {name}: give one of them another name, or a module of its own"
    )]
    Ambiguous { name: &'static str },
}

/// A function's name without its modules; its type parameters stay.
pub(super) fn short(name: &str) -> &str {
    let path = name.split_once('<').map_or(name, |(path, _)| path);
    path.rfind("::").and_then(|at| name.get(at + 2..)).unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn callable() -> Callable {
        Callable::Value(Box::new(|bytes| Ok(bytes.to_vec())))
    }

    #[test]
    fn what_is_not_registered_is_refused_with_what_to_do() {
        let mut registry = Registry::new();
        registry.add(Shape::Value, "app::area", TypeId::of::<u8>(), callable());
        let code = registry.code(Shape::Value, "app::area", TypeId::of::<u8>()).unwrap();
        assert!(registry.get(code.as_bytes()).is_ok());
        assert!(registry.get(b"frame app::area").is_err());
        assert!(registry.get(b"\xff").is_err());

        let refused = |name, function| registry.code(Shape::Value, name, function).unwrap_err().to_string();
        assert!(refused("app::other", TypeId::of::<u8>()).contains("floe_client::functions![other]"));
        assert!(refused("app::main::{{closure}}", TypeId::of::<u8>()).contains("is a closure"));
        assert!(refused("app::area", TypeId::of::<u16>()).contains("two different functions"));
    }

    #[test]
    fn two_functions_of_one_name_are_refused_and_one_registered_twice_is_not() {
        let mut registry = Registry::new();
        for _ in 0..2 {
            registry.add(Shape::Value, "app::area", TypeId::of::<u8>(), callable());
        }
        assert!(registry.code(Shape::Value, "app::area", TypeId::of::<u8>()).is_ok());
        registry.add(Shape::Value, "app::area", TypeId::of::<u16>(), callable());
        assert!(registry.code(Shape::Value, "app::area", TypeId::of::<u8>()).is_err());
    }

    #[test]
    fn names_are_shortened_for_people() {
        assert_eq!(short("iris::math::area"), "area");
        assert_eq!(short("iris::cast<core::f64::Wide>"), "cast<core::f64::Wide>");
        assert_eq!(short("area"), "area");
    }
}
