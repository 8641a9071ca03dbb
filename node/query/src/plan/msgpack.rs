//! Msgpack as far as translating a plan needs it: where every value of a document begins and ends, and writing a
//! document anew from values of an old one.
//!
//! A plan is a driver's word, so nothing here recurses, and what is kept is bounded: by [`MAX_VALUES`], and runs of
//! small numbers, which is how frames and callbacks travel, are one value.

use std::ops::Range;

/// How many values a plan may have. Each takes 16 bytes here, and at least ten times as much as part of a plan; an
/// operation has about ten, so that a thousand columns may have four hundred operations each.
pub(super) const MAX_VALUES: usize = 4 << 20;

/// Why bytes are no document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    /// It ends within a value.
    #[error("it is cut short")]
    Short,
    /// Bytes are left after it.
    #[error("{0} bytes follow its end")]
    Trailing(usize),
    /// A byte that no value begins with.
    #[error("a byte of it, {0:#04x}, begins no value of msgpack")]
    Byte(u8),
    /// More than [`MAX_VALUES`].
    #[error("it has more than {MAX_VALUES} values")]
    Large,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Map,
    Array,
    /// Text, number, nothing, bytes, or an array of small numbers.
    Leaf,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    /// Where its bytes begin; they end where those of the slot `next` begin.
    start: u64,
    /// The slot after it and all that is in it.
    next: u32,
    kind: Kind,
}

/// A document, with the places of its values.
#[derive(Debug)]
pub(super) struct Document<'a> {
    bytes: &'a [u8],
    /// In the order of the bytes: what is in an array or a map follows it. One more at the end.
    slots: Vec<Slot>,
}

/// A value of a document.
#[derive(Clone, Copy, Debug)]
pub(super) struct Value<'a> {
    document: &'a Document<'a>,
    slot: u32,
}

impl<'a> Document<'a> {
    /// Finds the values of a document that fills `bytes`.
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        Self::bounded(bytes, MAX_VALUES)
    }

    fn bounded(bytes: &'a [u8], max_values: usize) -> Result<Self, Malformed> {
        let mut slots: Vec<Slot> = Vec::new();
        // Arrays and maps that are not yet complete, with the number of values that they lack.
        let mut open: Vec<(u32, u64)> = Vec::new();
        let mut at = 0;
        loop {
            if slots.len() == max_values {
                return Err(Malformed::Large);
            }
            let slot = slots.len() as u32;
            let head = head(bytes, at)?;
            let whole = match head.kind {
                Kind::Array => small_numbers(bytes, &head),
                Kind::Map | Kind::Leaf => None,
            };
            let (kind, lacks, end) = match whole {
                Some(end) => (Kind::Leaf, 0, end),
                None => (head.kind, head.values, head.end),
            };
            slots.push(Slot { start: at as u64, next: slot + 1, kind });
            at = end;
            if lacks > 0 {
                open.push((slot, lacks));
                continue;
            }
            while let Some((outer, lacks)) = open.last_mut() {
                *lacks -= 1;
                if *lacks > 0 {
                    break;
                }
                let next = slots.len() as u32;
                slots[*outer as usize].next = next;
                open.pop();
            }
            if open.is_empty() {
                break;
            }
        }
        if at < bytes.len() {
            return Err(Malformed::Trailing(bytes.len() - at));
        }
        slots.push(Slot { start: at as u64, next: slots.len() as u32 + 1, kind: Kind::Leaf });
        Ok(Self { bytes, slots })
    }

    /// The outermost value.
    pub(super) fn root(&'a self) -> Value<'a> {
        Value { document: self, slot: 0 }
    }
}

impl<'a> Value<'a> {
    fn get(self) -> Slot {
        self.document.slots[self.slot as usize]
    }

    fn range(self) -> Range<usize> {
        let slot = self.get();
        slot.start as usize..self.document.slots[slot.next as usize].start as usize
    }

    /// Its bytes.
    pub(super) fn bytes(self) -> &'a [u8] {
        &self.document.bytes[self.range()]
    }

    pub(super) fn is_map(self) -> bool {
        self.get().kind == Kind::Map
    }

    /// It and all values in it.
    pub(super) fn within(self) -> impl Iterator<Item = Value<'a>> {
        let Value { document, slot } = self;
        (slot..self.get().next).map(move |slot| Value { document, slot })
    }

    /// The values directly in an array, keys and values by turns of a map; none of anything else.
    fn children(self) -> impl Iterator<Item = Value<'a>> {
        let Value { document, slot } = self;
        let end = if self.get().kind == Kind::Leaf { slot + 1 } else { self.get().next };
        let mut slot = slot + 1;
        std::iter::from_fn(move || {
            let value = Value { document, slot };
            (slot < end).then(|| {
                slot = value.get().next;
                value
            })
        })
    }

    /// The values of an array; none of anything else, nor of an array of small numbers.
    pub(super) fn items(self) -> impl Iterator<Item = Value<'a>> {
        self.children().filter(move |_| self.get().kind == Kind::Array)
    }

    /// Keys and values of a map; none of anything else.
    pub(super) fn entries(self) -> impl Iterator<Item = (Value<'a>, Value<'a>)> {
        let mut children = self.children();
        std::iter::from_fn(move || self.is_map().then(|| Some((children.next()?, children.next()?)))?)
    }

    /// What a map has under a key.
    pub(super) fn field(self, name: &str) -> Option<Value<'a>> {
        self.entries().find(|(key, _)| key.text() == Some(name)).map(|(_, value)| value)
    }

    /// A text.
    pub(super) fn text(self) -> Option<&'a str> {
        let bytes = self.bytes();
        let begin = match *bytes.first()? {
            0xa0..=0xbf => 1,
            0xd9 => 2,
            0xda => 3,
            0xdb => 5,
            _ => return None,
        };
        std::str::from_utf8(bytes.get(begin..)?).ok()
    }

    /// Bytes.
    pub(super) fn binary(self) -> Option<&'a [u8]> {
        let bytes = self.bytes();
        let begin = match *bytes.first()? {
            0xc4 => 2,
            0xc5 => 3,
            0xc6 => 5,
            _ => return None,
        };
        bytes.get(begin..)
    }

    /// A variant of an enumeration: its name, alone or with what it holds.
    pub(super) fn variant(self) -> Option<(&'a str, Option<Value<'a>>)> {
        if let Some(name) = self.text() {
            return Some((name, None));
        }
        let mut entries = self.entries();
        let (key, value) = entries.next()?;
        entries.next().is_none().then_some((key.text()?, Some(value)))
    }

    pub(super) fn is_nil(self) -> bool {
        self.bytes() == [0xc0]
    }

    pub(super) fn is_false(self) -> bool {
        self.bytes() == [0xc2]
    }

    /// Whether it is a whole number, not negative.
    pub(super) fn is_number(self) -> bool {
        matches!(self.bytes().first(), Some(0x00..=0x7f | 0xcc..=0xcf))
    }
}

/// The beginning of a value.
struct Head {
    kind: Kind,
    /// How many values follow that belong to it.
    values: u64,
    /// Where it ends: a leaf wholly, others before what is in them.
    end: usize,
}

fn head(bytes: &[u8], at: usize) -> Result<Head, Malformed> {
    let first = *bytes.get(at).ok_or(Malformed::Short)?;
    let size = |width: usize| -> Result<u64, Malformed> {
        let field = bytes.get(at + 1..at + 1 + width).ok_or(Malformed::Short)?;
        Ok(field.iter().fold(0, |size, byte| size << 8 | u64::from(*byte)))
    };
    let leaf = |length: u64| -> Result<Head, Malformed> {
        let end = usize::try_from(length).ok().and_then(|length| at.checked_add(length));
        let end = end.filter(|end| *end <= bytes.len()).ok_or(Malformed::Short)?;
        Ok(Head { kind: Kind::Leaf, values: 0, end })
    };
    let nest = |kind, values: u64, width: usize| {
        // Each value takes a byte at least.
        let enough = values <= (bytes.len() - at) as u64;
        enough.then_some(Head { kind, values, end: at + 1 + width }).ok_or(Malformed::Short)
    };
    match first {
        0x00..=0x7f | 0xc0 | 0xc2 | 0xc3 | 0xe0..=0xff => leaf(1),
        0x80..=0x8f => nest(Kind::Map, 2 * u64::from(first & 0x0f), 0),
        0x90..=0x9f => nest(Kind::Array, u64::from(first & 0x0f), 0),
        0xa0..=0xbf => leaf(1 + u64::from(first & 0x1f)),
        0xc1 => Err(Malformed::Byte(first)),
        0xc4 | 0xd9 => leaf(2 + size(1)?),
        0xc5 | 0xda => leaf(3 + size(2)?),
        0xc6 | 0xdb => leaf(5 + size(4)?),
        0xc7 => leaf(3 + size(1)?),
        0xc8 => leaf(4 + size(2)?),
        0xc9 => leaf(6 + size(4)?),
        0xcc | 0xd0 => leaf(2),
        0xcd | 0xd1 => leaf(3),
        0xca | 0xce | 0xd2 => leaf(5),
        0xcb | 0xcf | 0xd3 => leaf(9),
        0xd4 => leaf(3),
        0xd5 => leaf(4),
        0xd6 => leaf(6),
        0xd7 => leaf(10),
        0xd8 => leaf(18),
        0xdc => nest(Kind::Array, size(2)?, 2),
        0xdd => nest(Kind::Array, size(4)?, 4),
        0xde => nest(Kind::Map, 2 * size(2)?, 2),
        0xdf => nest(Kind::Map, 2 * size(4)?, 4),
    }
}

/// Where an array ends that holds nothing but numbers below 256.
fn small_numbers(bytes: &[u8], head: &Head) -> Option<usize> {
    let mut at = head.end;
    for _ in 0..head.values {
        at += match bytes.get(at)? {
            0x00..=0x7f => 1,
            0xcc => 2,
            _ => return None,
        };
    }
    (at <= bytes.len()).then_some(at)
}

/// A document that is being written, of new parts and of values of an old one.
#[derive(Debug, Default)]
pub(super) struct Parts<'a>(Vec<Part<'a>>);

#[derive(Debug)]
enum Part<'a> {
    New(Vec<u8>),
    Old(Value<'a>),
}

impl<'a> Parts<'a> {
    fn new_bytes(&mut self) -> &mut Vec<u8> {
        if !matches!(self.0.last(), Some(Part::New(_))) {
            self.0.push(Part::New(Vec::new()));
        }
        match self.0.last_mut() {
            Some(Part::New(bytes)) => bytes,
            _ => unreachable!("it was pushed above"),
        }
    }

    fn sized(&mut self, small: u8, limit: usize, wide: [u8; 2], size: usize) -> &mut Self {
        let bytes = self.new_bytes();
        if size < limit {
            bytes.push(small | size as u8);
        } else if let Ok(size) = u16::try_from(size) {
            bytes.push(wide[0]);
            bytes.extend(size.to_be_bytes());
        } else {
            bytes.push(wide[1]);
            bytes.extend((size as u32).to_be_bytes());
        }
        self
    }

    /// The beginning of a map; as many keys and values follow.
    pub(super) fn map(&mut self, entries: usize) -> &mut Self {
        self.sized(0x80, 16, [0xde, 0xdf], entries)
    }

    /// The beginning of an array.
    pub(super) fn array(&mut self, items: usize) -> &mut Self {
        self.sized(0x90, 16, [0xdc, 0xdd], items)
    }

    pub(super) fn text(&mut self, text: &str) -> &mut Self {
        self.sized(0xa0, 32, [0xda, 0xdb], text.len());
        self.new_bytes().extend(text.as_bytes());
        self
    }

    pub(super) fn number(&mut self, number: u32) -> &mut Self {
        let bytes = self.new_bytes();
        bytes.push(0xce);
        bytes.extend(number.to_be_bytes());
        self
    }

    pub(super) fn nil(&mut self) -> &mut Self {
        self.new_bytes().push(0xc0);
        self
    }

    pub(super) fn boolean(&mut self, yes: bool) -> &mut Self {
        self.new_bytes().push(if yes { 0xc3 } else { 0xc2 });
        self
    }

    /// A value of the old document, which is translated in its turn.
    pub(super) fn value(&mut self, value: Value<'a>) -> &mut Self {
        self.0.push(Part::Old(value));
        self
    }

    /// A value of the old document as it is, whatever it is.
    pub(super) fn verbatim(&mut self, value: Value<'_>) -> &mut Self {
        self.new_bytes().extend(value.bytes());
        self
    }
}

/// Writes a document anew, behind what `out` has already. `translate` is asked for each map, from the outside in, and may write something else in
/// its place, of parts of it.
pub(super) fn rewrite<'a, E>(
    document: &'a Document<'a>,
    mut out: Vec<u8>,
    mut translate: impl FnMut(Value<'a>, &mut Parts<'a>) -> Result<bool, E>,
) -> Result<Vec<u8>, E> {
    out.reserve(document.bytes.len());
    let mut pending = vec![Part::Old(document.root())];
    while let Some(part) = pending.pop() {
        let value = match part {
            Part::New(bytes) => {
                out.extend(bytes);
                continue;
            }
            Part::Old(value) => value,
        };
        let mut parts = Parts::default();
        if value.is_map() && translate(value, &mut parts)? {
            pending.extend(parts.0.into_iter().rev());
            continue;
        }
        match value.children().next() {
            None => out.extend(value.bytes()),
            Some(first) => {
                let begin = value.range().start..first.range().start;
                out.extend(&document.bytes[begin]);
                let from = pending.len();
                pending.extend(value.children().map(Part::Old));
                pending[from..].reverse();
            }
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    /// Documents as others write them.
    fn documents() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(serde_json::Value::from),
            any::<i64>().prop_map(serde_json::Value::from),
            (-1e300..1e300f64).prop_map(serde_json::Value::from),
            ".{0,40}".prop_map(serde_json::Value::from),
            proptest::collection::vec(any::<u8>(), 0..70).prop_map(serde_json::Value::from),
        ];
        leaf.prop_recursive(6, 200, 20, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..20).prop_map(serde_json::Value::from),
                proptest::collection::hash_map(".{0,5}", inner, 0..20)
                    .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_not_translated_stays(json in documents()) {
            let bytes = rmp_serde::to_vec(&json).unwrap();
            let document = Document::parse(&bytes).unwrap();
            prop_assert_eq!(document.root().bytes(), &bytes[..]);
            let same = rewrite(&document, Vec::new(), |_, _| Ok::<_, ()>(false)).unwrap();
            prop_assert_eq!(same, bytes);
        }

        #[test]
        fn what_is_cut_short_is_malformed(json in documents(), cut in any::<prop::sample::Index>()) {
            let bytes = rmp_serde::to_vec(&json).unwrap();
            let cut = cut.index(bytes.len());
            prop_assert!(Document::parse(&bytes[..cut]).is_err());
        }

        #[test]
        fn any_bytes_are_a_document_or_malformed(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(document) = Document::parse(&bytes) {
                prop_assert_eq!(rewrite(&document, Vec::new(), |_, _| Ok::<_, ()>(false)).unwrap(), bytes.clone());
            }
        }

        #[test]
        fn written_parts_are_read(texts in proptest::collection::vec(".{0,300}", 0..40), number: u32) {
            let old = rmp_serde::to_vec(&serde_json::json!({"": null})).unwrap();
            let document = Document::parse(&old).unwrap();
            let bytes = rewrite(&document, Vec::new(), |_, parts| {
                parts.map(2).text("texts").array(texts.len());
                for text in &texts {
                    parts.text(text);
                }
                parts.text("number").number(number);
                Ok::<_, ()>(true)
            });
            let read: serde_json::Value = rmp_serde::from_slice(&bytes.unwrap()).unwrap();
            prop_assert_eq!(read, serde_json::json!({"texts": texts, "number": number}));
        }
    }

    #[test]
    fn depth_and_length_are_no_danger() {
        let mut deep = vec![0x91; 300_000];
        deep.push(0xc0);
        let document = Document::parse(&deep).unwrap();
        assert_eq!(rewrite(&document, Vec::new(), |_, _| Ok::<_, ()>(false)).unwrap(), deep);
        // A frame is one value.
        let frame = rmp_serde::to_vec(&vec![200u8; 1 << 20]).unwrap();
        assert_eq!(Document::parse(&frame).unwrap().slots.len(), 2);
        // An array that says it is larger than the document, and documents that are too large.
        assert_eq!(Document::parse(&[0xdd, 0xff, 0xff, 0xff, 0xff, 0xc0]).unwrap_err(), Malformed::Short);
        let three = [0x93, 0xc0, 0xc0, 0xc0];
        assert!(Document::bounded(&three, 4).is_ok());
        assert_eq!(Document::bounded(&three, 3).unwrap_err(), Malformed::Large);
        assert_eq!(Document::parse(&[0xc1]).unwrap_err(), Malformed::Byte(0xc1));
        assert_eq!(Document::parse(&[0xc0, 0xc0]).unwrap_err(), Malformed::Trailing(1));
    }

    #[test]
    fn variants_and_fields() {
        let bytes = rmp_serde::to_vec(&serde_json::json!({"Join": {"on": ["a", {"Column": "b"}]}})).unwrap();
        let document = Document::parse(&bytes).unwrap();
        let (name, join) = document.root().variant().unwrap();
        assert_eq!(name, "Join");
        let on: Vec<_> = join.unwrap().field("on").unwrap().items().collect();
        assert_eq!(on[0].variant().unwrap().0, "a");
        assert_eq!(on[1].variant().unwrap().1.unwrap().text(), Some("b"));
        assert!(join.unwrap().field("off").is_none() && on[0].field("x").is_none());
    }
}
