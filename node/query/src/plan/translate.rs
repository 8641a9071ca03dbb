//! Plans of other versions of Polars, as the version that runs here reads them.
//!
//! A serialized plan describes itself, so what reads is the same for all versions, and only what differs is
//! translated: node by node and expression by expression, told by its form. A form is one that no user's data can
//! take: names, literals and options are texts, numbers and bytes, and what a schema holds under a user's name is a
//! type. Where the form is the same and the meaning is not, the version decides, which the plan's header tells.
//!
//! What this version of Polars has no word for is refused by the name under which users know it.

use floe_protocol::Failure;

use super::msgpack::{Document, Malformed, Parts, Value, rewrite};

/// Who wrote a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Writer {
    /// py-polars 1.40 to 1.44, and Polars as it is here.
    One,
    /// py-polars 2.0 and later, and whoever is not known.
    Two,
}

/// What plans of each version say about their form: the hash of all types in them.
const FORMS: [(&[u8; 64], &str, Writer); 10] = [
    (b"e7a5735cfd3645e02ca6b89a9540f65cb08fc20bc04eacf4fb424fc2d40b5208", "1.40.0", Writer::One),
    (b"7a4ccf45d007d6d8b250aeebb39bb5b6725a3a0b81ce37bd43b5b46872fb7612", "1.40.1", Writer::One),
    (b"0b1f0bd2b4f5612abe4d45172d662e49e511e3a8becf7f039083a4a963033f3a", "1.41", Writer::One),
    (b"5e62ab1f820abb866d4b0357730c6feacd0101bc8950bf162b0e5705f8f52292", "1.42", Writer::One),
    (b"619969395f56a754ff74adfce5c2bfce518ceed928bd748926e631b513b183d3", "1.43.1", Writer::One),
    (b"4c41aded715f8ca85337bc9c23d38afa0e03d4dfb2802ac07e3c7b3b0b4fee9f", "1.43.2", Writer::One),
    (b"1104673576e9cccc0601f17b7f7c6ab29e726722cad08f0d657762686bf9fbec", "0.55 of Rust", Writer::One),
    (b"9bfcd182262693be6cb872bfc62beeba38de080f9aa83767eb693044009ee6fc", "1.44", Writer::One),
    (b"dd13fd0271a06799ac92d2b87b196660f19f2ff5d3ca3e16edb09eed5c51de68", "2.0", Writer::Two),
    (b"b2af60200b56e429cab31266a9391bc2b595c97c3d15312db0b29bb1dad0935c", "2.1", Writer::Two),
];

/// The name and the kind of the version that wrote a plan of this form.
pub(super) fn writer(form: &[u8]) -> (&'static str, Writer) {
    let known = FORMS.iter().find(|(hash, ..)| hash.as_slice() == form);
    known.map_or(("an unknown version", Writer::Two), |(_, name, writer)| (name, *writer))
}

/// A plan in the form of the Polars that runs here.
#[derive(Debug, Default)]
pub(super) struct Translated {
    /// With the header.
    pub(super) bytes: Vec<u8>,
    /// The queries in SQL that the plan has. Each stands in the plan as an `ExtContext`: its first context is a
    /// `Slice` whose offset is the query's number, the others are the tables.
    pub(super) queries: Vec<SqlQuery>,
}

/// A query in SQL that is part of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SqlQuery {
    pub(super) text: String,
    /// Names of its tables, in the order of the contexts.
    pub(super) tables: Vec<String>,
}

/// Why a plan is not translated.
#[derive(Debug, thiserror::Error)]
pub(super) enum Untranslated {
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// Part of it has no place here: what users call it, and why.
    #[error("{name} {why}")]
    Refused { name: String, why: Why },
}

/// Why part of a plan is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// It came with a later Polars.
    Since(&'static str),
    /// It was changed with a later Polars: values would be others.
    Changed(&'static str),
    /// It calls Python while the plan runs.
    Callback,
    /// It is no plan that Polars writes.
    Form,
}

impl std::fmt::Display for Why {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let own = floe_protocol::version::POLARS_VERSION;
        match self {
            Self::Since(version) => write!(
                f,
                "came with py-polars {version}, and Polars {own}, which runs queries here, does not have it: all that \
                 py-polars 1.40 to 1.43 can write is read, and of 2.0 and 2.1 what has a counterpart there"
            ),
            Self::Changed(version) => write!(
                f,
                "gives other values since py-polars {version} than in Polars {own}, which runs queries here: compute \
                 it before or after the query"
            ),
            Self::Callback => f.write_str(
                "is a Python function, and the nodes run plans without Python: mesh.collect and mesh.query have such a \
                 plan run whole, in a Python process of one node",
            ),
            Self::Form => f.write_str("is not what Polars writes"),
        }
    }
}

impl From<Untranslated> for Failure {
    fn from(untranslated: Untranslated) -> Self {
        match untranslated {
            Untranslated::Malformed(_) => super::unreadable(&untranslated.to_string()),
            Untranslated::Refused { why: Why::Form, .. } => {
                Self::Refused { message: untranslated.to_string() }
            }
            Untranslated::Refused { .. } => Self::Foreign { message: untranslated.to_string() },
        }
    }
}

/// The failure of a plan with something in it that py-polars 2 computes otherwise.
pub(super) fn changed(name: &str) -> Failure {
    refused(name, Why::Changed("2.0")).into()
}

fn refused(name: impl Into<String>, why: Why) -> Untranslated {
    Untranslated::Refused { name: name.into(), why }
}

/// Translates a plan without its header, and writes it behind another.
pub(super) fn translate(plan: &[u8], writer: Writer, header: Vec<u8>) -> Result<Translated, Untranslated> {
    let document = Document::parse(plan)?;
    let root = document.root();
    let nodes = root.field("dsl_plans").ok_or_else(|| refused("a plan without nodes", Why::Form))?;
    let mut translator = Translator {
        writer,
        plan: root.field("root"),
        added: nodes.items().count() as u32,
        queries: Vec::new(),
        contexts: false,
    };
    let bytes = rewrite(&document, header, |value, parts| translator.map(value, nodes, parts))?;
    if translator.contexts && !translator.queries.is_empty() {
        // They are told from the queries by there being none: no version writes both.
        return Err(refused("LazyFrame.with_context beside a query in SQL", Why::Form));
    }
    Ok(Translated { bytes, queries: translator.queries })
}

struct Translator<'a> {
    writer: Writer,
    /// The key of the plan's last node. The outermost map is the one that has it.
    plan: Option<Value<'a>>,
    /// The number that a node gets that is added to the plan's.
    added: u32,
    queries: Vec<SqlQuery>,
    /// Whether the plan has an `ExtContext` of its own.
    contexts: bool,
}

impl<'a> Translator<'a> {
    fn map(
        &mut self,
        value: Value<'a>,
        nodes: Value<'a>,
        parts: &mut Parts<'a>,
    ) -> Result<bool, Untranslated> {
        if let Some(root) = self.plan.take() {
            // One node more, without inputs, for what needs an input and has none.
            let frames =
                value.field("dataframes").ok_or_else(|| refused("a plan without frames", Why::Form))?;
            parts.map(3).text("root").value(root).text("dataframes").value(frames);
            parts.text("dsl_plans").array(self.added as usize + 1);
            nodes.items().for_each(|node| {
                parts.value(node);
            });
            parts.map(2).text("value").map(1).text("SinkMultiple").map(1).text("inputs").array(0);
            parts.text("version").number(1);
            return Ok(true);
        }
        let Some((name, Some(of))) = value.variant() else {
            return Ok(false);
        };
        if !of.is_map() {
            return Ok(false);
        }
        match name {
            "Join" => join(of, parts),
            "MergeSorted" => merge_sorted(of, parts),
            "Scan" => scan(of, parts),
            "SQL" => self.sql(of, parts),
            "ExtContext" => {
                self.contexts |= of.field("contexts").is_some();
                Ok(false)
            }
            "GroupBy" => match of.field("apply") {
                Some(apply) if !apply.is_nil() => Err(refused("GroupBy.map_groups", Why::Callback)),
                _ => Ok(false),
            },
            // Rows without columns have a number since 2.0.
            "DataFrameScan" | "Select" if self.writer >= Writer::Two && is_without_columns(of) => {
                Err(refused("a frame without columns", Why::Changed("2.0")))
            }
            "PythonScan" if of.field("options").is_some() => Err(refused(
                "a source in Python (pl.defer, register_io_source, scan_pyarrow_dataset, scan_delta, scan_iceberg)",
                Why::Callback,
            )),
            "PipeWithSchema" if of.field("callback").is_some() => {
                Err(refused("LazyFrame.pipe_with_schema", Why::Callback))
            }
            "PipeWithDtype" if of.field("callback").is_some() => {
                Err(refused("pipe_with_dtype", Why::Callback))
            }
            "Resolver" if of.field("resolver").is_some() => {
                Err(refused("LazyFrame.from_lazyframe_resolver", Why::Callback))
            }
            "Recursive" if of.field("anchor").is_some() => {
                Err(refused("a recursive query", Why::Since("2.1")))
            }
            "MapFunction" => match of.field("function").and_then(Value::variant) {
                Some(("OpaquePython", _)) => Err(refused("LazyFrame.map_batches", Why::Callback)),
                _ => Ok(false),
            },
            "AnonymousFunction" if of.field("function").is_some() => anonymous(of),
            "Function" => self.function(of, parts),
            "Agg" => quantile(of, parts),
            "StructEval" => match of.field("variant").and_then(Value::text) {
                Some("Select") => Err(refused("Expr.struct.eval", Why::Since("2.0"))),
                _ => Ok(false),
            },
            "BinaryExpr" => match of.field("op").and_then(Value::text) {
                Some("TruncDivide") => Err(refused("Expr.truncdiv", Why::Since("2.1"))),
                _ => Ok(false),
            },
            "RenameAlias" => match of.field("function").and_then(Value::variant) {
                Some(("Map", _)) => Err(refused("the function given to name.map or rename", Why::Callback)),
                _ => Ok(false),
            },
            "Sink" => match of.field("payload").and_then(Value::variant) {
                Some(("Callback", _)) => Err(refused("LazyFrame.sink_batches", Why::Callback)),
                _ => Ok(false),
            },
            _ => Ok(false),
        }
    }

    /// A query in SQL over other nodes.
    fn sql(&mut self, of: Value<'a>, parts: &mut Parts<'a>) -> Result<bool, Untranslated> {
        let (Some(text), Some(relations)) = (of.field("query").and_then(Value::text), of.field("relations"))
        else {
            return Ok(false);
        };
        if of.field("catalog_tables").is_some_and(|tables| tables.items().next().is_some()) {
            return Err(refused("a table of a catalog in SQL", Why::Since("2.1")));
        }
        let (mut names, mut keys) = (Vec::new(), Vec::new());
        for relation in relations.items() {
            let mut pair = relation.items();
            let (Some(name), Some(key)) = (pair.next().and_then(Value::text), pair.next()) else {
                return Err(refused("a table of a query in SQL", Why::Form));
            };
            names.push(name.to_owned());
            keys.push(key);
        }
        let added = self.added;
        let no_input = |parts: &mut Parts<'a>| {
            parts.map(2).text("idx").number(added).text("version").number(1);
        };
        parts.map(1).text("ExtContext").map(2).text("input");
        no_input(parts);
        parts.text("contexts").array(1 + keys.len());
        parts.map(1).text("Slice").map(3).text("input");
        no_input(parts);
        parts.text("offset").number(self.queries.len() as u32).text("len").number(0);
        for key in keys {
            parts.map(1).text("IR").map(2).text("dsl").value(key).text("version").number(0);
        }
        self.queries.push(SqlQuery { text: text.to_owned(), tables: names });
        Ok(true)
    }

    fn function(&self, of: Value<'a>, parts: &mut Parts<'a>) -> Result<bool, Untranslated> {
        let (Some(input), Some((name, held))) =
            (of.field("input"), of.field("function").and_then(Value::variant))
        else {
            return Ok(false);
        };
        let Some(first) = input.items().next() else {
            return Ok(false);
        };
        let inner = held.and_then(Value::variant);
        let two = self.writer >= Writer::Two;
        match (name, inner) {
            ("MapExpr", _) => Err(refused("the type Map and its namespace", Why::Since("2.0"))),
            ("Erf", _) => Err(refused("Expr.erf", Why::Since("2.0"))),
            ("Erfc", _) => Err(refused("Expr.erfc", Why::Since("2.0"))),
            ("ApproxQuantile", _) => Err(refused("Expr.approx_quantile", Why::Since("2.0"))),
            ("Bin", inner) => {
                let method =
                    held.and_then(|bin| bin.field("method")).or(inner.and_then(|(_, method)| method));
                let name = match method.and_then(Value::variant) {
                    Some(("Quantiles", _)) => "Expr.bin_quantiles",
                    Some(("Ranks", _)) => "Expr.bin_ranks",
                    _ => "Expr.bin_intervals",
                };
                Err(refused(name, Why::Since("2.0")))
            }
            ("Mm3Hash", _) => Err(refused("a Murmur3 hash", Why::Since("2.1"))),
            ("Hash", _) if held.is_some_and(Value::is_number) => Err(refused("hash", Why::Changed("2.0"))),
            ("DecimalArith" | "TruncArith" | "Sql", _) => Err(refused(
                format!(
                    "pl.sql_expr with {}",
                    inner.map_or(name, |(kind, of)| of.and_then(Value::text).unwrap_or(kind))
                ),
                Why::Since("2.0"),
            )),
            ("ArrayExpr", Some(("Dot", _))) => Err(refused("Expr.arr.dot", Why::Since("1.44"))),
            ("ListExpr", Some(("ToMap", _))) => Err(refused("Expr.list.to_map", Why::Since("2.0"))),
            ("ArrayExpr", Some(("ToStruct", Some(to)))) if to.is_map() => {
                repeatable(first)?;
                let fields = to.field("fields").filter(|fields| !fields.is_nil());
                or_null(parts, first, |parts| {
                    if let Some(fields) = fields {
                        function(parts, |parts| {
                            parts.map(1).text("StructExpr").map(1).text("RenameFields").verbatim(fields);
                        });
                    }
                    function(parts, |parts| {
                        parts.map(1).text("ArrayExpr").map(1).text("ToStruct").nil();
                    });
                    parts.value(first);
                });
                Ok(true)
            }
            ("ListExpr", Some(("ToStruct", Some(names)))) if two => {
                repeatable(first)?;
                or_null(parts, first, |parts| {
                    function(parts, |parts| {
                        parts.map(1).text("ListExpr").map(1).text("ToStruct").verbatim(names);
                    });
                    parts.value(first);
                });
                Ok(true)
            }
            ("StringExpr", Some(("ZFill", _))) if two => {
                let Some(length) = input.items().nth(1) else {
                    return Ok(false);
                };
                repeatable(first)?;
                zfill(parts, first, length);
                Ok(true)
            }
            ("ListExpr" | "ArrayExpr", Some((of_elements @ ("Reverse" | "Unique" | "NUnique"), held))) => {
                elements(parts, first, name == "ListExpr", of_elements, held);
                Ok(true)
            }
            ("RollingExpr", _) => rolling(of, parts),
            ("StructExpr", Some(("MapFieldNames", _))) => Err(refused("Expr.name.map_fields", Why::Callback)),
            ("FoldHorizontal" | "CumFoldHorizontal", _) => Err(refused("pl.fold", Why::Callback)),
            ("ReduceHorizontal" | "CumReduceHorizontal", _) => Err(refused("pl.reduce", Why::Callback)),
            _ => Ok(false),
        }
    }
}

/// Refuses to write an expression twice that would be different each time.
fn repeatable(expression: Value<'_>) -> Result<(), Untranslated> {
    let random = |value: Value<'_>| match value.variant() {
        Some(("Random", Some(held))) => held.field("method").is_some(),
        _ => false,
    };
    match expression.within().any(random) {
        true => Err(refused("to_struct or str.zfill of a shuffled or sampled column", Why::Changed("2.0"))),
        false => Ok(()),
    }
}

/// The beginning of a function of one input, which follows.
fn function(parts: &mut Parts<'_>, name: impl FnOnce(&mut Parts<'_>)) {
    parts.map(1).text("Function").map(2).text("function");
    name(parts);
    parts.text("input").array(1);
}

/// A value where another is not null, and null where it is.
fn or_null<'a>(parts: &mut Parts<'a>, of: Value<'a>, value: impl FnOnce(&mut Parts<'a>)) {
    parts.map(1).text("Ternary").map(3).text("predicate");
    function(parts, |parts| {
        parts.map(1).text("Boolean").text("IsNotNull");
    });
    parts.value(of).text("truthy");
    value(parts);
    parts.text("falsy").map(1).text("Literal").map(1).text("Scalar").map(1).text("Null").text("Null");
}

/// Whether a frame, or what is selected, has no columns.
fn is_without_columns(of: Value<'_>) -> bool {
    let fields = of.field("schema").and_then(|schema| schema.field("fields"));
    fields.is_some_and(|fields| fields.is_map() && fields.entries().next().is_none())
        || of.field("input").is_some()
            && of.field("options").is_some()
            && of.field("expr").is_some_and(|exprs| exprs.items().next().is_none())
}

/// Since 2.0 a condition is a variant; before, three lists, of which one kind was empty.
fn join<'a>(of: Value<'a>, parts: &mut Parts<'a>) -> Result<bool, Untranslated> {
    let (Some(left), Some(right), Some(options), Some(condition)) =
        (of.field("input_left"), of.field("input_right"), of.field("options"), of.field("condition"))
    else {
        return Ok(false);
    };
    let (mut left_on, mut right_on, mut predicates) = (Vec::new(), Vec::new(), Vec::new());
    match condition.variant() {
        Some(("Equi", Some(keys))) => {
            if let Some(pairs) = keys.field("on") {
                for pair in pairs.items() {
                    let mut pair = pair.items();
                    left_on.extend(pair.next());
                    right_on.extend(pair.next());
                }
            } else {
                left_on.extend(keys.field("left_on").into_iter().flat_map(Value::items));
                right_on.extend(keys.field("right_on").into_iter().flat_map(Value::items));
            }
        }
        Some(("NonEqui", Some(keys))) => {
            let how = options.field("args").and_then(|args| args.field("how"));
            if how.and_then(Value::text) != Some("Inner") {
                return Err(refused(
                    "LazyFrame.join_where that keeps rows without a match",
                    Why::Since("2.1"),
                ));
            }
            predicates.extend(keys.field("predicates").into_iter().flat_map(Value::items));
        }
        other => {
            let name = other.map_or("of an unknown form", |(name, _)| name);
            return Err(refused(format!("a join with the condition {name}"), Why::Since("2.2")));
        }
    }
    parts.map(1).text("Join").map(6);
    parts.text("input_left").value(left).text("input_right").value(right).text("options").value(options);
    for (name, keys) in [("left_on", left_on), ("right_on", right_on), ("predicates", predicates)] {
        parts.text(name).array(keys.len());
        keys.into_iter().for_each(|key| {
            parts.value(key);
        });
    }
    Ok(true)
}

/// Before 1.43 there was one key; 1.40.0 says nothing of the order of equal ones.
fn merge_sorted<'a>(of: Value<'a>, parts: &mut Parts<'a>) -> Result<bool, Untranslated> {
    let (Some(left), Some(right), Some(key)) =
        (of.field("input_left"), of.field("input_right"), of.field("key"))
    else {
        return Ok(false);
    };
    if key.text().is_none() {
        return Ok(false);
    }
    parts.map(1).text("MergeSorted").map(4);
    parts.text("input_left").value(left).text("input_right").value(right);
    parts.text("key").array(1).verbatim(key).text("maintain_order");
    match of.field("maintain_order") {
        Some(keep) => parts.verbatim(keep),
        None => parts.boolean(false),
    };
    Ok(true)
}

/// Since 2.0 paths may be given that are not to be expanded, and files be read by others than Polars.
fn scan<'a>(of: Value<'a>, parts: &mut Parts<'a>) -> Result<bool, Untranslated> {
    let (Some(sources), Some(arguments), Some(kind)) =
        (of.field("sources"), of.field("unified_scan_args"), of.field("scan_type"))
    else {
        return Ok(false);
    };
    match kind.variant() {
        Some(("ExternalReaderBuilder", _)) => {
            return Err(refused("pl.scan_external_reader", Why::Callback));
        }
        Some(("PythonDataset", _)) => {
            return Err(refused(
                "a table of Delta Lake or Iceberg, which py-polars resolves,",
                Why::Callback,
            ));
        }
        _ => {}
    }
    if !arguments.field("expand_paths").is_some_and(Value::is_false) {
        return Ok(false);
    }
    parts.map(1).text("Scan").map(3).text("sources").value(sources).text("scan_type").value(kind);
    let kept =
        || arguments.entries().filter(|(name, _)| !matches!(name.text(), Some("glob" | "expand_paths")));
    parts.text("unified_scan_args").map(1 + kept().count()).text("glob").boolean(false);
    for (name, argument) in kept() {
        parts.verbatim(name).value(argument);
    }
    Ok(true)
}

/// In 1.40 a quantile was an aggregate, since then it is a function.
fn quantile<'a>(of: Value<'a>, parts: &mut Parts<'a>) -> Result<bool, Untranslated> {
    let Some(("Quantile", Some(of))) = of.variant() else {
        return Ok(false);
    };
    let (Some(expr), Some(quantile), Some(method)) =
        (of.field("expr"), of.field("quantile"), of.field("method"))
    else {
        return Ok(false);
    };
    parts.map(1).text("Function").map(2).text("input").array(2).value(expr).value(quantile);
    parts.text("function").map(1).text("Quantile").map(1).text("method").verbatim(method);
    Ok(true)
}

/// In 1.40 some functions of lists were of their own; since then their elements are evaluated.
fn elements<'a>(parts: &mut Parts<'a>, input: Value<'a>, list: bool, name: &str, held: Option<Value<'a>>) {
    parts.map(1).text("Eval").map(3).text("expr").value(input).text("evaluation");
    if name == "NUnique" {
        parts.map(1).text("Agg").map(1).text(name).text("Element");
    } else {
        function(parts, |parts| match held {
            Some(held) => {
                parts.map(1).text(name).verbatim(held);
            }
            None => {
                parts.text(name);
            }
        });
        parts.text("Element");
    }
    parts.text("variant");
    match (list, name) {
        (true, "NUnique") => parts.text("ListAgg"),
        (true, _) => parts.text("List"),
        (false, "NUnique") => parts.text("ArrayAgg"),
        (false, _) => parts.map(1).text("Array").map(1).text("as_list").boolean(name == "Unique"),
    };
}

/// Since 2.0 a width counts characters, before it counted bytes.
fn zfill<'a>(parts: &mut Parts<'a>, input: Value<'a>, length: Value<'a>) {
    let string = |parts: &mut Parts<'a>, name: &str| {
        function(parts, |parts| {
            parts.map(1).text("StringExpr").text(name);
        });
        parts.value(input);
    };
    parts.map(1).text("Function").map(2).text("function").map(1).text("StringExpr").text("ZFill");
    parts.text("input").array(2).value(input);
    parts.map(1).text("BinaryExpr").map(3).text("left").value(length).text("op").text("Plus").text("right");
    parts.map(1).text("BinaryExpr").map(3).text("left");
    string(parts, "LenBytes");
    parts.text("op").text("Minus").text("right");
    string(parts, "LenChars");
}

/// Since 2.0 a rolling correlation has no degrees of freedom; before, they had no effect on it.
fn rolling<'a>(of: Value<'a>, parts: &mut Parts<'a>) -> Result<bool, Untranslated> {
    let kind = || of.field("function")?.field("RollingExpr")?.field("function")?.variant();
    if let Some(("Map", _)) = kind() {
        return Err(refused("the function given to rolling_map", Why::Callback));
    }
    let options = || {
        let rolling = of.field("function")?.field("RollingExpr")?;
        let of_two = rolling.field("function")?.field("CorrCov")?;
        let options = of_two.field("corr_cov_options")?;
        options.field("ddof")?.is_nil().then_some((rolling, of_two, options))
    };
    let (Some((rolling, of_two, options)), Some(input)) = (options(), of.field("input")) else {
        return Ok(false);
    };
    let (Some(size), Some(samples), Some(correlation), Some(window)) = (
        options.field("window_size"),
        options.field("min_periods"),
        of_two.field("is_corr"),
        rolling.field("options"),
    ) else {
        return Ok(false);
    };
    parts.map(1).text("Function").map(2).text("input").value(input);
    parts.text("function").map(1).text("RollingExpr").map(2).text("options").verbatim(window);
    parts.text("function").map(1).text("CorrCov").map(2).text("is_corr").verbatim(correlation);
    parts.text("corr_cov_options").map(3).text("window_size").verbatim(size);
    parts.text("min_periods").verbatim(samples).text("ddof").number(1);
    Ok(true)
}

/// A function on columns; Python's are refused by what they are called on.
fn anonymous(of: Value<'_>) -> Result<bool, Untranslated> {
    if !of.field("function").and_then(Value::binary).is_some_and(|bytes| bytes.starts_with(PYTHON)) {
        return Ok(false);
    }
    let input = of.field("input").and_then(|input| input.items().next()).and_then(Value::variant);
    let on = match input {
        Some(("Column", Some(name))) => format!(" of the column {}", name.text().unwrap_or_default()),
        _ => String::new(),
    };
    Err(refused(format!("the function given to map_batches or map_elements{on}"), Why::Callback))
}

/// How the bytes of a Python function begin.
const PYTHON: &[u8] = b"PLPYFN";

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::{Value as Json, json};

    use super::*;

    fn plan(nodes: Json) -> Vec<u8> {
        let root = json!({"idx": 1, "version": 1});
        rmp_serde::to_vec(&json!({"root": root, "dataframes": [], "dsl_plans": nodes})).unwrap()
    }

    /// The nodes of a translated plan, without the one that is added.
    fn translated(nodes: &Json, writer: Writer) -> Result<(Vec<Json>, Vec<SqlQuery>), String> {
        let found = translate(&plan(nodes.clone()), writer, Vec::new()).map_err(|error| error.to_string())?;
        let plan: Json = rmp_serde::from_slice(&found.bytes).unwrap();
        let mut nodes = plan["dsl_plans"].as_array().unwrap().clone();
        assert_eq!(nodes.pop().unwrap()["value"], json!({"SinkMultiple": {"inputs": []}}));
        Ok((nodes, found.queries))
    }

    fn same(nodes: &Json) {
        for writer in [Writer::One, Writer::Two] {
            assert_eq!(Json::from(translated(nodes, writer).unwrap().0), *nodes);
        }
    }

    #[test]
    fn names_of_users_are_no_forms() {
        let names = ["Join", "Function", "SQL", "Agg", "Scan", "PythonScan", "Sink", "MergeSorted", "Random"];
        for name in names {
            for dtype in
                [json!({"Struct": [{"name": "function", "dtype": "Int64"}]}), json!({"List": "Int8"})]
            {
                let schema = json!({"fields": {name: dtype}, "metadata": null});
                same(&json!([{"value": {"DataFrameScan": {"df": 0, "schema": schema}}, "version": 1}]));
            }
            same(&json!([{"value": {"Select": {"expr": [{"Column": name}, {"Alias": [name, name]}]}}}]));
            same(&json!([{"value": {name: {name: "text"}}}]));
        }
    }

    #[test]
    fn joins_have_lists_of_keys() {
        let options = || json!({"args": {"how": "Inner"}});
        let join = |condition: Json| json!([{"Join": {"input_left": 1, "input_right": 2, "condition": condition, "options": options()}}]);
        let wanted = |left: &[&str], right: &[&str], predicates: &[&str]| {
            vec![
                json!({"Join": {"input_left": 1, "input_right": 2, "options": options(), "left_on": left, "right_on": right,
                "predicates": predicates}}),
            ]
        };
        for (condition, wanted) in [
            (json!({"Equi": {"on": [["a", "b"], ["c", "d"]]}}), wanted(&["a", "c"], &["b", "d"], &[])),
            (json!({"Equi": {"left_on": ["a"], "right_on": ["b"]}}), wanted(&["a"], &["b"], &[])),
            (json!({"Equi": {"left_on": [], "right_on": []}}), wanted(&[], &[], &[])),
            (json!({"NonEqui": {"predicates": ["a", "b"]}}), wanted(&[], &[], &["a", "b"])),
        ] {
            assert_eq!(translated(&join(condition), Writer::Two).unwrap().0, wanted);
        }
        let why = translated(&join(json!({"Fuzzy": {}})), Writer::Two).unwrap_err();
        assert!(why.starts_with("a join with the condition Fuzzy"), "{why}");
        let left = json!([{"Join": {"input_left": 1, "input_right": 2, "condition": {"NonEqui": {"predicates": ["a"]}},
            "options": {"args": {"how": "Left"}}}}]);
        assert!(translated(&left, Writer::Two).unwrap_err().starts_with("LazyFrame.join_where that keeps"));
    }

    #[test]
    fn queries_in_sql_stand_apart() {
        let sql = |text: &str, tables: Json| json!({"value": {"SQL": {"query": text, "relations": tables}}});
        let nodes = json!([
            sql("SELECT 1", json!([])),
            sql("SELECT 2", json!([["a", {"idx": 5}], ["b", {"idx": 6}]]))
        ]);
        let (translated, queries) = translated(&nodes, Writer::Two).unwrap();
        let texts: Vec<_> = queries.iter().map(|query| (query.text.as_str(), query.tables.len())).collect();
        assert_eq!(texts, [("SELECT 1", 0), ("SELECT 2", 2)]);
        let contexts = |node: &Json| node["value"]["ExtContext"]["contexts"].as_array().unwrap().clone();
        assert_eq!(contexts(&translated[0]).len(), 1);
        let second = contexts(&translated[1]);
        assert_eq!(second[0]["Slice"]["offset"], 1);
        assert_eq!(second[0]["Slice"]["input"], json!({"idx": 2, "version": 1}));
        assert_eq!(second[2], json!({"IR": {"dsl": {"idx": 6}, "version": 0}}));
        let both = json!([sql("SELECT 1", json!([])), {"ExtContext": {"input": 1, "contexts": []}}]);
        assert!(self::translated(&both, Writer::Two).unwrap_err().contains("with_context"));
    }

    #[test]
    fn what_is_random_is_not_written_twice() {
        let zfill =
            |input: Json| json!([{"Function": {"input": [input, 5], "function": {"StringExpr": "ZFill"}}}]);
        let column = zfill(json!({"Column": "s"}));
        assert!(translated(&column, Writer::Two).unwrap().0[0].to_string().contains("LenChars"));
        assert_eq!(translated(&column, Writer::One).unwrap().0, *column.as_array().unwrap());
        let random =
            json!({"Function": {"input": [{"Column": "s"}], "function": {"Random": {"method": "Shuffle"}}}});
        assert!(translated(&zfill(random), Writer::Two).unwrap_err().contains("shuffled"));
    }

    #[test]
    fn what_is_missing_is_named() {
        let of = |function: Json| json!([{"Function": {"input": [{"Column": "x"}], "function": function}}]);
        let python = json!([{"AnonymousFunction": {"input": [{"Column": "x"}], "function": "?"}}]);
        assert!(translated(&python, Writer::One).is_ok());
        for (nodes, name) in [
            (of(json!("Erf")), "Expr.erf came with py-polars 2.0"),
            (of(json!({"Bin": {"method": {"Ranks": {}}, "labels": null}})), "Expr.bin_ranks came"),
            (of(json!({"Hash": 7})), "hash gives other values since py-polars 2.0"),
            (of(json!({"Sql": {"Binary": "Div"}})), "pl.sql_expr with Div came"),
            (
                json!([{"MapFunction": {"function": {"OpaquePython": {}}}}]),
                "LazyFrame.map_batches is a Python function",
            ),
            (json!([{"BinaryExpr": {"op": "TruncDivide"}}]), "Expr.truncdiv came with py-polars 2.1"),
        ] {
            let why = translated(&nodes, Writer::Two).unwrap_err();
            assert!(why.starts_with(name), "{why}");
        }
        assert!(translated(&of(json!({"Hash": [7, 7, 7, 7]})), Writer::One).is_ok());
    }
}
