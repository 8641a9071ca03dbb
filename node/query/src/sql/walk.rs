//! Walking what sqlparser parsed. Its walk is compiled for each type of visitor, thousands of functions every time: so
//! here for one type, which passes on what it meets.

use std::ops::ControlFlow;

use floe_protocol::Failure;
use sqlparser::ast::{
    Expr, ObjectName, Query, Select, Statement, TableFactor, ValueWithSpan, Visit, VisitMut, Visitor,
    VisitorMut,
};

/// Shows a visitor all that there is in a node.
pub(super) fn walk(node: &impl Visit, visitor: &mut dyn Visitor<Break = ()>) -> ControlFlow<()> {
    node.visit(&mut Each(visitor))
}

/// Has a visitor change what there is in a node.
pub(super) fn walk_mut(
    node: &mut impl VisitMut,
    visitor: &mut dyn VisitorMut<Break = Failure>,
) -> ControlFlow<Failure> {
    node.visit(&mut EachMut(visitor))
}

struct Each<'v>(&'v mut dyn Visitor<Break = ()>);

struct EachMut<'v>(&'v mut dyn VisitorMut<Break = Failure>);

macro_rules! pass_on {
    ($($name:ident($node:ty);)*) => {$(
        fn $name(&mut self, node: $node) -> ControlFlow<Self::Break> {
            self.0.$name(node)
        }
    )*};
}

impl Visitor for Each<'_> {
    type Break = ();

    pass_on! {
        pre_visit_query(&Query);
        post_visit_query(&Query);
        pre_visit_select(&Select);
        post_visit_select(&Select);
        pre_visit_relation(&ObjectName);
        post_visit_relation(&ObjectName);
        pre_visit_table_factor(&TableFactor);
        post_visit_table_factor(&TableFactor);
        pre_visit_expr(&Expr);
        post_visit_expr(&Expr);
        pre_visit_statement(&Statement);
        post_visit_statement(&Statement);
        pre_visit_value(&ValueWithSpan);
        post_visit_value(&ValueWithSpan);
    }
}

impl VisitorMut for EachMut<'_> {
    type Break = Failure;

    pass_on! {
        pre_visit_query(&mut Query);
        post_visit_query(&mut Query);
        pre_visit_select(&mut Select);
        post_visit_select(&mut Select);
        pre_visit_relation(&mut ObjectName);
        post_visit_relation(&mut ObjectName);
        pre_visit_table_factor(&mut TableFactor);
        post_visit_table_factor(&mut TableFactor);
        pre_visit_expr(&mut Expr);
        post_visit_expr(&mut Expr);
        pre_visit_statement(&mut Statement);
        post_visit_statement(&mut Statement);
        pre_visit_value(&mut ValueWithSpan);
        post_visit_value(&mut ValueWithSpan);
    }
}
