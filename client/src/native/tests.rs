//! A host played through its pipes.

use std::any::TypeId;
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex};

use ciborium::Value;
use floe_protocol::function::Blob;
use floe_protocol::{BlobId, frame};

use super::connection::Connection;
use super::host::serve;
use super::object;
use super::registry::{Callable, Registry, Shape};
use super::wire::Raised;

/// A host's stdin, to which may be added while it is read.
#[derive(Clone, Default)]
struct Pipe(Arc<Mutex<VecDeque<u8>>>);

impl Read for Pipe {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.lock().unwrap().read(buffer)
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a host said.
#[derive(Debug)]
struct Said {
    header: Vec<(Value, Value)>,
    sections: Vec<Vec<u8>>,
}

impl Said {
    fn text(&self, key: &str) -> &str {
        self.value(key).and_then(Value::as_text).unwrap_or_default()
    }

    fn value(&self, key: &str) -> Option<&Value> {
        self.header.iter().find(|(name, _)| name.as_text() == Some(key)).map(|(_, value)| value)
    }
}

/// A node's side of a host's pipes.
#[derive(Clone, Default)]
struct Node {
    orders: Pipe,
    said: Pipe,
}

impl Node {
    fn order(&mut self, header: &[(&str, Value)], sections: &[&[u8]]) {
        let mut map: Vec<_> = header.iter().map(|(key, value)| ((*key).into(), value.clone())).collect();
        if !sections.is_empty() {
            let lengths = sections.iter().map(|section| (section.len() as u64).into()).collect();
            map.push(("sections".into(), Value::Array(lengths)));
        }
        let header = frame::encode(&Value::Map(map)).unwrap();
        self.orders.write_all(&(header.len() as u32).to_be_bytes()).unwrap();
        self.orders.write_all(&header).unwrap();
        self.orders.write_all(&sections.concat()).unwrap();
    }

    fn define(&mut self, function: u32, code: &str) {
        let header = [("type", "define".into()), ("function", function.into()), ("name", "f".into())];
        self.order(&header, &[code.as_bytes()]);
    }

    fn task(&mut self, function: u32, argument: &str, sections: &[&[u8]]) {
        let header = [("type", "task".into()), ("function", function.into()), ("argument", argument.into())];
        self.order(&header, sections);
    }

    fn calls(&mut self, function: u32, calls: &[(u64, Vec<u8>)]) {
        let ids: Vec<u8> = calls.iter().flat_map(|(id, _)| id.to_le_bytes()).collect();
        let lengths: Vec<u8> =
            calls.iter().flat_map(|(_, argument)| (argument.len() as u32).to_le_bytes()).collect();
        let arguments: Vec<u8> = calls.iter().flat_map(|(_, argument)| argument.clone()).collect();
        let header = [("type", "calls".into()), ("function", function.into())];
        self.order(&header, &[&ids, &lengths, &arguments]);
    }

    fn connection(&self) -> Arc<Connection> {
        Arc::new(Connection::new(self.orders.clone(), self.said.clone()))
    }

    /// Lets a host read all orders, and gives what it said.
    fn play(&mut self, registry: &Registry) -> Vec<Said> {
        serve(&self.connection(), &|code| registry.get(code)).unwrap();
        self.heard()
    }

    fn heard(&mut self) -> Vec<Said> {
        let mut said = Vec::new();
        let mut length = [0; 4];
        while self.said.read_exact(&mut length).is_ok() {
            let mut header = vec![0; u32::from_be_bytes(length) as usize];
            self.said.read_exact(&mut header).unwrap();
            let header = frame::decode::<Value>(&header).unwrap().into_map().unwrap();
            let mut one = Said { header, sections: Vec::new() };
            let lengths =
                one.value("sections").cloned().map_or(Vec::new(), |value| value.into_array().unwrap());
            for length in lengths {
                let mut section = vec![0; u64::try_from(length.into_integer().unwrap()).unwrap() as usize];
                self.said.read_exact(&mut section).unwrap();
                one.sections.push(section);
            }
            said.push(one);
        }
        said
    }
}

/// Doubles numbers, refuses odd ones and panics at 13.
fn registry() -> Registry {
    let mut registry = Registry::new();
    let double = |argument: &[u8]| {
        let number: u64 = object::decode(argument).map_err(|error| Raised::new(&error))?;
        match number {
            13 => panic!("thirteen"),
            odd if odd % 2 == 1 => Err(Raised::new(&format!("{odd} is odd\nreally"))),
            even => Ok(object::encode(&(even * 2)).unwrap()),
        }
    };
    registry.add(Shape::Value, "double", TypeId::of::<u8>(), Callable::Value(Box::new(double)));
    let sum = |argument: &[u8]| {
        let numbers: Vec<u64> = object::decode(argument).map_err(|error| Raised::new(&error))?;
        Ok(object::encode(&numbers.iter().sum::<u64>()).unwrap())
    };
    registry.add(Shape::Value, "sum", TypeId::of::<u16>(), Callable::Value(Box::new(sum)));
    registry
}

fn number(number: u64) -> Vec<u8> {
    object::encode(&number).unwrap()
}

#[test]
fn a_host_greets_and_ends_with_its_pipe_and_refuses_another_protocol() {
    let mut node = Node::default();
    node.order(&[("type", "hello".into()), ("protocol", 1.into())], &[]);
    let said = node.play(&registry());
    assert_eq!(said.len(), 1);
    assert_eq!(said[0].text("type"), "ready");

    node.order(&[("type", "hello".into()), ("protocol", 2.into())], &[]);
    node.define(1, "value double");
    let said = node.play(&registry());
    assert_eq!((said.len(), said[0].text("type")), (1, "unfit"));
    assert!(said[0].text("why").contains("version 2"), "{said:?}");
}

#[test]
fn tasks_return_objects_or_raise() {
    let mut node = Node::default();
    node.define(1, "value double");
    node.define(2, "value sum");
    node.define(3, "value missing");
    node.task(1, "bytes", &[&number(4)]);
    let parts: Vec<_> = (1..=3).map(|part| object::tests::wrap(&number(part), part == 2)).collect();
    node.task(2, "none", &parts.iter().map(Vec::as_slice).collect::<Vec<_>>());
    node.task(1, "bytes", &[&number(5)]);
    node.task(1, "bytes", &[&number(13)]);
    node.task(3, "bytes", &[&number(4)]);
    node.task(4, "bytes", &[&number(4)]);
    node.task(1, "path", &[b"/tmp/x"]);
    let said = node.play(&registry());

    assert_eq!((said[0].text("type"), said[0].text("kind")), ("returned", "object"));
    assert_eq!(said[0].sections, [number(8)]);
    assert_eq!(said[1].sections, [number(6)]);
    let raised: Vec<_> = said[2..].iter().map(|said| (said.text("type"), said.text("message"))).collect();
    assert_eq!(raised[0], ("raised", "5 is odd"));
    assert_eq!(said[2].text("traceback"), "5 is odd\nreally");
    assert_eq!(raised[1], ("raised", "panic: thirteen"));
    assert!(said[3].text("traceback").contains("tests.rs"), "{:?}", said[3]);
    assert!(raised[2].1.contains("value missing"), "{raised:?}");
    assert!(raised[3].1.contains("not defined"), "{raised:?}");
    assert!(raised[4].1.contains("another kind of input"), "{raised:?}");
    assert_eq!(raised.len(), 5);
    assert_eq!(said[6].sections, [b""], "there is always a section for the exception");
}

#[test]
fn calls_are_answered_in_order_and_a_panic_ends_only_its_own() {
    let mut node = Node::default();
    node.define(1, "value double");
    let calls: Vec<_> = [(70, 1000), (71, 3), (72, 13), (73, 2)].map(|(id, n)| (id, number(n))).into();
    node.calls(1, &calls);
    node.calls(1, &[(90, number(0))]);
    node.calls(1, &[]);
    let said = node.play(&registry());

    let mut results = Vec::new();
    for said in &said {
        assert_eq!((said.text("type"), said.sections.len()), ("results", 5));
        let [ids, status, elapsed, lengths, bodies] = &said.sections[..] else { unreachable!() };
        assert_eq!(
            (ids.len(), elapsed.len(), lengths.len()),
            (status.len() * 8, status.len() * 4, status.len() * 4)
        );
        let mut bodies = &bodies[..];
        for call in 0..status.len() {
            let id = u64::from_le_bytes(ids[call * 8..][..8].try_into().unwrap());
            let length = u32::from_le_bytes(lengths[call * 4..][..4].try_into().unwrap());
            let (body, rest) = bodies.split_at(length as usize);
            bodies = rest;
            results.push((id, status[call], frame::decode::<Value>(body).unwrap()));
        }
        assert!(bodies.is_empty());
    }
    let ended: Vec<_> = results.iter().map(|(id, status, _)| (*id, *status)).collect();
    assert_eq!(ended, [(70, 0), (71, 1), (72, 1), (73, 0), (90, 0)]);
    assert_eq!(results[0].2, 2000.into());
    let raised = results[1].2.as_map().unwrap();
    assert_eq!(raised[0], ("message".into(), "3 is odd".into()));
    assert_eq!(raised[2], ("exception".into(), Value::Bytes(Vec::new())));
}

#[test]
fn a_call_says_that_it_runs() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&[0; 8]).unwrap();
    let path = file.path().to_str().unwrap();
    let mut node = Node::default();
    node.order(&[("type", "hello".into()), ("protocol", 1.into()), ("progress", path.into())], &[]);
    node.define(1, "value double");
    node.calls(1, &[(70, number(2)), (71, number(13))]);
    node.play(&registry());
    assert_eq!(std::fs::read(path).unwrap(), 71u64.to_le_bytes());
}

#[test]
fn rubbish_in_a_message_of_calls_ends_the_host() {
    for sections in
        [&[&[1u8; 8][..], &[1, 0, 0, 0], b""][..], &[&[1; 7], &[0; 4], b""], &[b"", b"", b"x"], &[b""]]
    {
        let mut node = Node::default();
        node.order(&[("type", "calls".into()), ("function", 1.into())], sections);
        let registry = registry();
        assert!(serve(&node.connection(), &|code| registry.get(code)).is_err());
    }
}

#[test]
fn a_blob_is_asked_for_once_and_other_orders_wait_meanwhile() {
    let mut node = Node::default();
    let connection = node.connection();
    let (here, gone) = (BlobId(7), BlobId(8));
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap();
    let answer = |id: BlobId, key, text: &str| {
        [("type", "blob".into()), ("blob", id.to_string().into()), (key, Value::from(text))]
    };
    node.define(1, "value double");
    node.order(&answer(here, "path", path), &[]);
    node.order(&answer(gone, "missing", "no node has it"), &[]);
    node.order(&answer(here, "path", "/blobs/7"), &[]);
    node.task(1, "bytes", &[&number(1)]);

    let blob = |id| connection.blob(Blob { id, bytes: 3 }).unwrap();
    assert_eq!(blob(here).unwrap().to_str(), Some(path));
    assert_eq!(blob(here).unwrap().to_str(), Some(path), "the second time it is known");
    assert_eq!(blob(gone).unwrap_err(), "no node has it");
    std::fs::write(path, "changed").unwrap();
    assert_eq!(blob(here).unwrap().to_str(), Some("/blobs/7"), "a function has written to it");
    let asked: Vec<_> = node.heard().iter().map(|said| said.text("blob").to_owned()).collect();
    assert_eq!(asked, [here.to_string(), gone.to_string(), here.to_string()]);
    assert!(matches!(
        connection.next().unwrap().unwrap().order,
        super::wire::Order::Define { function: 1, .. }
    ));
}

/// Functions as a driver has them.
mod registered {
    #![allow(clippy::needless_pass_by_value)]

    pub(super) fn length(text: String) -> usize {
        text.len()
    }

    pub(super) fn parse(text: String) -> Result<u64, std::num::ParseIntError> {
        text.parse()
    }

    pub(super) fn generic<T: Default + Into<u64>>(more: u64) -> u64 {
        T::default().into() + more
    }
}

#[test]
fn functions_are_registered_in_every_shape_they_allow() {
    use registered::{generic, length, parse};

    crate::functions![length, parse, generic::<u8>, registered::generic::<u16>];
    fn code<F: 'static>(shape: Shape, _: F) -> Option<String> {
        let name = std::any::type_name::<F>();
        super::registry::functions().code(shape, name, TypeId::of::<F>()).ok()
    }
    assert!(code(Shape::Value, length).unwrap().ends_with("registered::length"));
    assert_eq!(code(Shape::Fallible, length), None);
    assert_eq!(code(Shape::Value, parse), None, "its error cannot be written");
    assert!(code(Shape::Fallible, parse).is_some());
    assert_ne!(code(Shape::Value, generic::<u8>), code(Shape::Value, generic::<u16>));
    assert_eq!(code(Shape::Value, generic::<u32>), None);

    let code = code(Shape::Fallible, parse).unwrap();
    let Callable::Value(parse) = &*super::registry::functions().get(code.as_bytes()).unwrap() else {
        panic!("it is a function of values");
    };
    assert_eq!(parse(&object::encode("42").unwrap()).unwrap(), number(42));
    let raised = parse(&object::encode("x").unwrap()).unwrap_err();
    assert_eq!(raised.message, "invalid digit found in string");
    assert!(parse(&number(1)).unwrap_err().message.starts_with("the argument: "));
}
