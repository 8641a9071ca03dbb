//! How deep a query may be, told before anything recurses into it.
//!
//! [`crate::stack`] holds what these limits let pass. They are there because Polars' time grows with the square of an
//! expression's depth, and because bytes could nest deeper than any stack. Both looks are loops.

use floe_protocol::Failure;
use sqlparser::dialect::GenericDialect;
use sqlparser::keywords::Keyword;
use sqlparser::tokenizer::{Token, Tokenizer};

/// How deep the values of a plan's encoding nest: an operator of an expression takes two to three levels, so that some
/// 2,500 to 4,000 may stand one within the other. Polars needs about ten seconds to optimize so many.
pub(crate) const MAX_PLAN_NESTING: usize = 8_000;

/// How many operators of a plan stand on top of each other.
pub(crate) const MAX_PLAN_DEPTH: usize = 10_000;

/// How many operators a plan has, where one that is used twice counts twice.
pub(crate) const MAX_PLAN_OPERATORS: usize = 50_000;

/// How deep a statement's expressions, sub-queries, joins and set operations nest. A chain such as `a OR b OR c` nests
/// once for each of its operators.
pub(crate) const MAX_SQL_DEPTH: usize = 2_500;

/// How deep parentheses, calls and sub-queries of a statement may be within each other, which is where its parser
/// recurses.
pub(crate) const MAX_SQL_BRACKETS: usize = 1_000;

/// The longest statement.
pub(crate) const MAX_SQL_BYTES: usize = 8 << 20;

/// Refuses a plan that is too deep or too large, by its encoding (MessagePack). What is cut short or damaged passes: its
/// reader says so.
pub(crate) fn check_plan(encoded: &[u8]) -> Result<(), Failure> {
    // How many values are yet to come of each value that is open.
    let mut open: Vec<u64> = vec![1];
    let mut rest = encoded;
    while let Some(left) = open.last_mut() {
        if *left == 0 {
            open.pop();
            continue;
        }
        *left -= 1;
        let Some(value) = next_value(&mut rest) else { return Ok(()) };
        let (values, is_array) = match value {
            Value::Leaf => continue,
            Value::Array(values) => (values, true),
            Value::Map(pairs) => (pairs.saturating_mul(2), false),
        };
        open.push(values);
        if open.len() > MAX_PLAN_NESTING {
            return Err(refused(format!(
                "an expression of this plan is too deep: its encoding nests more than {MAX_PLAN_NESTING} levels; name a \
                 part of it with with_columns() and go on from there, or write a long `a | b | c` with any_horizontal() \
                 or is_in()"
            )));
        }
        // The operators are an array in the map that a plan is.
        if is_array && open.len() == 3 && values > MAX_PLAN_OPERATORS as u64 {
            return Err(too_many_operators());
        }
    }
    Ok(())
}

/// Refuses a plan whose operators are this deep, or this many.
pub(crate) fn check_operators(depth: usize, operators: usize) -> Result<(), Failure> {
    if depth > MAX_PLAN_DEPTH {
        return Err(refused(format!(
            "this plan is too deep: more than {MAX_PLAN_DEPTH} operators stand on top of each other; collect a part of it \
             and go on from the result"
        )));
    }
    if operators > MAX_PLAN_OPERATORS {
        return Err(too_many_operators());
    }
    Ok(())
}

/// Refuses a statement that is too long or too deep. What is no SQL passes: its parser says so.
pub(crate) fn check_sql(text: &str) -> Result<(), Failure> {
    if text.len() > MAX_SQL_BYTES {
        return Err(refused(format!(
            "the statement has {} bytes, of at most {MAX_SQL_BYTES}: long lists of constants are better put into a file \
             and joined",
            text.len()
        )));
    }
    let Ok(tokens) = Tokenizer::new(&GenericDialect, text).tokenize() else { return Ok(()) };
    // Levels that are open, and how deep they are together without the innermost.
    let mut outer: Vec<Level> = Vec::new();
    let (mut level, mut depth) = (Level::default(), 0);
    for token in &tokens {
        match effect(token) {
            Effect::None => {}
            Effect::Open => {
                depth += level.depth() + 1;
                outer.push(std::mem::take(&mut level));
            }
            Effect::Close => {
                if let Some(enclosing) = outer.pop() {
                    level = enclosing;
                    depth -= level.depth() + 1;
                }
            }
            Effect::Operator => level.operators += 1,
            Effect::Logical => {
                level.logical += 1;
                level.operators = 0;
            }
            Effect::Part => (level.logical, level.operators) = (0, 0),
            Effect::Relation => {
                level.relations += 1;
                (level.logical, level.operators) = (0, 0);
            }
        }
        if depth + level.depth() > MAX_SQL_DEPTH {
            return Err(refused(format!(
                "the statement is too deep: more than {MAX_SQL_DEPTH} operators, brackets, joins or set operations stand \
                 one within the other; write a long `x = 1 OR x = 2` as `x IN (1, 2)`, and name parts of it with WITH"
            )));
        }
    }
    Ok(())
}

/// What is open between two brackets, or between CASE and END.
#[derive(Default)]
struct Level {
    /// Joins and set operations: each holds those before it.
    relations: usize,
    /// ANDs and ORs of the present expression.
    logical: usize,
    /// Operators since the last of these.
    operators: usize,
}

impl Level {
    fn depth(&self) -> usize {
        self.relations + self.logical + self.operators
    }
}

/// What a token does to the depth.
enum Effect {
    None,
    Open,
    Close,
    Operator,
    Logical,
    /// Another part of the statement, or of a list, begins.
    Part,
    Relation,
}

fn effect(token: &Token) -> Effect {
    match token {
        Token::LParen | Token::LBracket | Token::LBrace => Effect::Open,
        Token::RParen | Token::RBracket | Token::RBrace => Effect::Close,
        Token::Comma | Token::SemiColon => Effect::Part,
        Token::Whitespace(_) | Token::Number(..) | Token::SingleQuotedString(_) | Token::Period => {
            Effect::None
        }
        Token::Word(word) => match word.keyword {
            Keyword::CASE => Effect::Open,
            Keyword::END => Effect::Close,
            Keyword::AND | Keyword::OR => Effect::Logical,
            Keyword::UNION | Keyword::INTERSECT | Keyword::EXCEPT | Keyword::JOIN => Effect::Relation,
            Keyword::SELECT
            | Keyword::FROM
            | Keyword::WHERE
            | Keyword::HAVING
            | Keyword::ON
            | Keyword::WHEN
            | Keyword::THEN
            | Keyword::ELSE => Effect::Part,
            Keyword::NOT | Keyword::IS | Keyword::IN | Keyword::LIKE | Keyword::BETWEEN | Keyword::XOR => {
                Effect::Operator
            }
            _ => Effect::None,
        },
        _ => Effect::Operator,
    }
}

/// A value of MessagePack, and how many follow that are within it.
enum Value {
    Leaf,
    Array(u64),
    Map(u64),
}

/// Takes a value's head, and its bytes if it has any; nothing at the end, or where it is cut short.
fn next_value(rest: &mut &[u8]) -> Option<Value> {
    let marker = take_length(rest, 1)?;
    let (leaf_bytes, value) = match marker as u8 {
        0x80..=0x8f => (0, Value::Map(marker & 0x0f)),
        0x90..=0x9f => (0, Value::Array(marker & 0x0f)),
        0xdc => (0, Value::Array(take_length(rest, 2)?)),
        0xdd => (0, Value::Array(take_length(rest, 4)?)),
        0xde => (0, Value::Map(take_length(rest, 2)?)),
        0xdf => (0, Value::Map(take_length(rest, 4)?)),
        // Short strings; strings and bytes with lengths; extensions, which have a type besides.
        0xa0..=0xbf => (marker & 0x1f, Value::Leaf),
        0xc4 | 0xd9 => (take_length(rest, 1)?, Value::Leaf),
        0xc5 | 0xda => (take_length(rest, 2)?, Value::Leaf),
        0xc6 | 0xdb => (take_length(rest, 4)?, Value::Leaf),
        0xc7 => (take_length(rest, 1)? + 1, Value::Leaf),
        0xc8 => (take_length(rest, 2)? + 1, Value::Leaf),
        0xc9 => (take_length(rest, 4)? + 1, Value::Leaf),
        // Numbers, and extensions of a fixed length.
        0xcc | 0xd0 => (1, Value::Leaf),
        0xcd | 0xd1 => (2, Value::Leaf),
        0xca | 0xce | 0xd2 => (4, Value::Leaf),
        0xcb | 0xcf | 0xd3 => (8, Value::Leaf),
        0xd4 => (2, Value::Leaf),
        0xd5 => (3, Value::Leaf),
        0xd6 => (5, Value::Leaf),
        0xd7 => (9, Value::Leaf),
        0xd8 => (17, Value::Leaf),
        // Small numbers, nothing, true and false.
        _ => (0, Value::Leaf),
    };
    *rest = rest.get(usize::try_from(leaf_bytes).ok()?..)?;
    Some(value)
}

/// Takes so many bytes as a number.
fn take_length(rest: &mut &[u8], bytes: usize) -> Option<u64> {
    let (taken, after) = rest.split_at_checked(bytes)?;
    *rest = after;
    Some(taken.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

fn too_many_operators() -> Failure {
    refused(format!(
        "this plan is too large: it has more than {MAX_PLAN_OPERATORS} operators, where one that is used twice counts \
         twice; collect a part of it and go on from the result"
    ))
}

fn refused(message: String) -> Failure {
    Failure::Refused { message }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn message(outcome: Result<(), Failure>) -> String {
        outcome.map_or_else(|failure| failure.to_string(), |()| String::new())
    }

    #[test]
    fn nesting_is_counted_and_what_is_damaged_passes() {
        let nested = |levels: usize| [vec![0x91; levels], vec![0xc0]].concat();
        check_plan(&nested(MAX_PLAN_NESTING - 1)).unwrap();
        assert!(message(check_plan(&nested(MAX_PLAN_NESTING))).contains("too deep"));
        // Wide is not deep, and bytes within a string are no values.
        check_plan(&[vec![0xdd, 0, 0, 0x40, 0], [0x91, 0x01].repeat(0x4000)].concat()).unwrap();
        check_plan(&[vec![0xc6, 0, 1, 0, 0], vec![0x91; 1 << 16]].concat()).unwrap();
        for damaged in [
            &[][..],
            &[0xc1],
            &[0xdd, 0xff],
            &[0xdd, 0xff, 0xff, 0xff, 0xff],
            &[0xc9, 0xff, 0xff, 0xff, 0xff],
        ] {
            check_plan(damaged).unwrap();
        }
        // Each value is told from the next one by its length.
        let of_each_kind: &[&[u8]] = &[
            &[0x7f],
            &[0xff],
            &[0xa2, 1, 2],
            &[0xc4, 1, 9],
            &[0xc5, 0, 1, 9],
            &[0xd9, 1, 9],
            &[0xda, 0, 1, 9],
            &[0xdb, 0, 0, 0, 1, 9],
            &[0xc7, 1, 5, 9],
            &[0xc8, 0, 1, 5, 9],
            &[0xc9, 0, 0, 0, 1, 5, 9],
            &[0xcc, 1],
            &[0xcd, 1, 2],
            &[0xce, 1, 2, 3, 4],
            &[0xcf, 1, 2, 3, 4, 5, 6, 7, 8],
            &[0xca, 1, 2, 3, 4],
            &[0xcb, 1, 2, 3, 4, 5, 6, 7, 8],
            &[0xd4, 1, 2],
            &[0xd5, 1, 2, 3],
            &[0xd6, 1, 2, 3, 4, 5],
        ];
        for value in of_each_kind {
            let mut rest: &[u8] = &[*value, &[0x91, 0xc0][..]].concat();
            assert!(matches!(next_value(&mut rest), Some(Value::Leaf)), "{value:x?}");
            assert!(matches!(next_value(&mut rest), Some(Value::Array(1))), "{value:x?}");
        }
    }

    #[test]
    fn a_plan_of_too_many_operators_is_told_by_its_head() {
        // {"p": [...]}: as many operators as the head says.
        let plan = |operators: u32| [vec![0x81, 0xa1, b'p', 0xdd], operators.to_be_bytes().to_vec()].concat();
        check_plan(&plan(MAX_PLAN_OPERATORS as u32)).unwrap();
        assert!(message(check_plan(&plan(MAX_PLAN_OPERATORS as u32 + 1))).contains("too large"));
    }

    #[test]
    fn sql_is_as_deep_as_its_chains_and_brackets() {
        let many = |text: &str, n: usize| text.repeat(n);
        let is_deep = |text: &str| message(check_sql(text)).contains("too deep");
        let n = MAX_SQL_DEPTH;
        assert!(!is_deep(&format!("select x from t where x = 0 {}", many(" or x = 1", n - 2))));
        for deep in [
            format!("select x from t where x = 0 {}", many(" or x = 1", n + 1)),
            format!("select x {} from t", many(" + 1", n + 1)),
            format!("select {} x from t", many("- ", n + 1)),
            format!("select {} x from t", many("not ", n + 1)),
            format!("select {}x{} from t", many("(", n + 1), many(")", n + 1)),
            format!("select {}x", many("(", n + 1)),
            format!("select 1 {}", many(" union all select 1", n + 1)),
            format!("select 1 from t {}", many(" join t using (x)", n + 1)),
            format!("select {} 1 {}", many("case when x then ", n + 1), many(" end", n + 1)),
            format!("select x from {} t", many("(select x from ", n + 1)),
        ] {
            assert!(is_deep(&deep), "{}", &deep[..60]);
        }
        // Long lists are wide.
        for wide in [
            format!("select x from t where x in (1 {})", many(", 1", 50_000)),
            format!("values (1 + 1) {}", many(", (1 + 1)", 50_000)),
            format!("select case {} end from t", many(" when x = 1 then 2", 50_000)),
            format!("select 1 {}", many(", x + 1", 50_000)),
            many(")", 5_000),
            "'".to_owned(),
        ] {
            check_sql(&wide).unwrap();
        }
        assert!(message(check_sql(&many(" ", MAX_SQL_BYTES + 1))).contains("bytes"));
    }
}
