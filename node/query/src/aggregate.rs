//! Aggregates in two steps: each task aggregates its rows, then the partial results are aggregated.
//!
//! ```text
//!   sum(a) / len()      partial: sum(a) as p0, len() as p1      final: sum(p0) / sum(p1)
//! ```
//!
//! Only the leaves of an expression, its aggregates, are replaced; what is done with their results stays as
//! it is in the final step.

use polars::prelude::*;
use polars_plan::plans::expr_ir::{ExprIR, OutputName};
use polars_plan::plans::{
    AExpr, AExprBuilder, IRAggExpr, IRBooleanFunction, IRFunctionExpr, ToFieldContext, is_scalar_ae,
};
use polars_utils::arena::{Arena, Node};

use crate::separable::{elementwise, row_separable};

/// A list of aggregates in its two steps.
pub(crate) struct TwoSteps {
    /// What each task computes, over the input.
    pub(crate) partials: Vec<ExprIR>,
    /// What is computed from the partial results, under the names of the original list.
    pub(crate) finals: Vec<ExprIR>,
    /// Whether a partial result of no rows must be left out (`first` of nothing is null, not a value).
    pub(crate) needs_rows: bool,
}

/// Takes aggregates apart, or says that one of them cannot be: the name of that one.
///
/// `input` is the schema of the rows, `output` that of the result.
pub(crate) fn two_steps(
    aggregates: &[ExprIR],
    input: &Schema,
    output: &Schema,
    exprs: &mut Arena<AExpr>,
) -> Result<TwoSteps, PlSmallStr> {
    let mut steps = Steps { input, partials: Vec::new(), schema: Schema::default(), needs_rows: false };
    let mut finals = Vec::new();
    for aggregate in aggregates {
        let name = aggregate.output_name().clone();
        let node = steps.finish(aggregate.node(), exprs).ok_or_else(|| name.clone())?;
        // The second step must have the type of the whole, as sums of sums might be wider.
        let dtype = exprs.get(node).to_dtype(&ToFieldContext::new(exprs, &steps.schema));
        if dtype.ok().as_ref() != output.get(&name) {
            return Err(name);
        }
        finals.push(ExprIR::new(node, OutputName::Alias(name)));
    }
    Ok(TwoSteps { partials: steps.partials, finals, needs_rows: steps.needs_rows })
}

struct Steps<'a> {
    input: &'a Schema,
    partials: Vec<ExprIR>,
    /// Of the partials.
    schema: Schema,
    needs_rows: bool,
}

impl Steps<'_> {
    /// The final form of an expression whose leaves are aggregates and constants.
    fn finish(&mut self, node: Node, exprs: &mut Arena<AExpr>) -> Option<Node> {
        let expr = exprs.get(node).clone();
        match &expr {
            AExpr::Literal(literal) if literal.is_scalar() => Some(node),
            AExpr::Len => {
                let partial = self.partial(node, exprs)?;
                Some(partial.sum(exprs).node())
            }
            AExpr::Agg(aggregate) => self.aggregate(node, aggregate, exprs),
            AExpr::Function { input, function, .. } => match function {
                IRFunctionExpr::Boolean(IRBooleanFunction::Any { ignore_nulls }) if rows(input, exprs) => {
                    Some(self.partial(node, exprs)?.any(*ignore_nulls, exprs).node())
                }
                IRFunctionExpr::Boolean(IRBooleanFunction::All { ignore_nulls }) if rows(input, exprs) => {
                    Some(self.partial(node, exprs)?.all(*ignore_nulls, exprs).node())
                }
                IRFunctionExpr::NullCount if rows(input, exprs) => {
                    Some(self.partial(node, exprs)?.sum(exprs).node())
                }
                _ => self.outer(&expr, exprs),
            },
            AExpr::BinaryExpr { .. } | AExpr::Ternary { .. } | AExpr::Cast { .. } => self.outer(&expr, exprs),
            _ => None,
        }
    }

    /// An elementwise operation on the results of aggregates: its inputs are finished, itself it stays.
    fn outer(&mut self, expr: &AExpr, exprs: &mut Arena<AExpr>) -> Option<Node> {
        if let AExpr::Function { options, .. } = expr
            && !options.is_elementwise()
        {
            return None;
        }
        // The order that `replace_inputs` expects is that of `inputs_rev`, turned round.
        let mut inputs: Vec<Node> = Vec::new();
        expr.inputs_rev(&mut inputs);
        inputs.reverse();
        if inputs.is_empty() {
            return None;
        }
        for input in &mut inputs {
            *input = self.finish(*input, exprs)?;
        }
        Some(exprs.add(expr.clone().replace_inputs(&inputs)))
    }

    fn aggregate(&mut self, node: Node, aggregate: &IRAggExpr, exprs: &mut Arena<AExpr>) -> Option<Node> {
        use IRAggExpr::*;
        match *aggregate {
            Sum(input) if per_row(input, exprs) => Some(self.partial(node, exprs)?.sum(exprs).node()),
            Min { input, propagate_nans } if per_row(input, exprs) => {
                let partial = self.partial(node, exprs)?;
                Some(if propagate_nans { partial.nan_min(exprs) } else { partial.min(exprs) }.node())
            }
            Max { input, propagate_nans } if per_row(input, exprs) => {
                let partial = self.partial(node, exprs)?;
                Some(if propagate_nans { partial.nan_max(exprs) } else { partial.max(exprs) }.node())
            }
            Count { input, .. } if per_row(input, exprs) => {
                Some(self.partial(node, exprs)?.sum(exprs).node())
            }
            Mean(input) if per_row(input, exprs) => self.mean(input, exprs),
            First(input) if per_element(input, exprs) => {
                self.needs_rows = true;
                Some(self.partial(node, exprs)?.first(exprs).node())
            }
            Last(input) if per_element(input, exprs) => {
                self.needs_rows = true;
                Some(self.partial(node, exprs)?.last(exprs).node())
            }
            FirstNonNull(input) if per_row(input, exprs) => {
                Some(self.partial(node, exprs)?.first_non_null(exprs).node())
            }
            LastNonNull(input) if per_row(input, exprs) => {
                Some(self.partial(node, exprs)?.last_non_null(exprs).node())
            }
            _ => None,
        }
    }

    /// A mean is a sum and a count. Polars sums as `f64` for every numeric type; the means of decimals and of
    /// points in time are rounded in ways of their own and are left whole.
    fn mean(&mut self, input: Node, exprs: &mut Arena<AExpr>) -> Option<Node> {
        let dtype = exprs.get(input).to_dtype(&ToFieldContext::new(exprs, self.input)).ok()?;
        let numeric = dtype.is_primitive_numeric() && !matches!(dtype, DataType::Float16);
        if !numeric && dtype != DataType::Boolean {
            return None;
        }
        let values = AExprBuilder::new_from_node(input);
        let sum = values.cast(DataType::Float64, exprs).sum(exprs).node();
        let count = values.count(exprs).node();
        let sum = self.partial(sum, exprs)?.sum(exprs);
        let count = self.partial(count, exprs)?.sum(exprs).cast(DataType::Float64, exprs);
        let zero = AExprBuilder::lit_scalar(Scalar::from(0.0), exprs);
        let null = AExprBuilder::lit_scalar(Scalar::null(DataType::Float64), exprs);
        let mean = sum.true_divide(count, exprs);
        let mean = count.gt(zero, exprs).ternary(mean, null, exprs);
        Some(if dtype == DataType::Float32 { mean.cast(DataType::Float32, exprs) } else { mean }.node())
    }

    /// Adds a partial result and refers to it by its name.
    fn partial(&mut self, node: Node, exprs: &mut Arena<AExpr>) -> Option<AExprBuilder> {
        let name: PlSmallStr = format!("__floe_partial_{}", self.partials.len()).into();
        let dtype = exprs.get(node).to_dtype(&ToFieldContext::new(exprs, self.input)).ok()?;
        if matches!(dtype, DataType::Unknown(_)) {
            return None;
        }
        self.schema.with_column(name.clone(), dtype);
        self.partials.push(ExprIR::new(node, OutputName::Alias(name.clone())));
        Some(AExprBuilder::col(name, exprs))
    }
}

fn rows(input: &[ExprIR], exprs: &Arena<AExpr>) -> bool {
    matches!(input, [only] if per_row(only.node(), exprs))
}

/// Whether an aggregate's input is as many values as its rows give. A constant is one value, however many rows
/// there are, so a sum of it is not the sum of the tasks' sums.
fn per_row(input: Node, exprs: &Arena<AExpr>) -> bool {
    row_separable(input, exprs) && !is_scalar_ae(input, exprs)
}

/// Whether there is exactly one value for each row, so that no row means no value.
fn per_element(input: Node, exprs: &Arena<AExpr>) -> bool {
    elementwise(input, exprs) && !is_scalar_ae(input, exprs)
}
