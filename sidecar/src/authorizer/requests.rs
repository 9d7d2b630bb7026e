//! The decisions about the requests of a mesh peer's connection, where rules distinguish requests.

use std::cell::{Cell, OnceCell};
use std::rc::Rc;

use tidegate_core::policy::{Decision, Denial, RequestRules};
use tidegate_core::route::RequestView;

/// The rules for the requests of one connection by one policy. Each decision is made once, so that further requests
/// allocate nothing.
pub(crate) struct RequestDecisions {
    rules: RequestRules,
    /// By rule: what it grants.
    allowed: Box<[OnceCell<Rc<Decision>>]>,
    /// By the rule that came closest: what no rule grants.
    refused: Box<[OnceCell<Rc<Decision>>]>,
    /// By match: whether it has granted a request.
    used: Box<[Cell<bool>]>,
}

impl RequestDecisions {
    pub(super) fn new(rules: RequestRules) -> Self {
        let cells = || std::iter::repeat_with(OnceCell::new).take(rules.count()).collect();
        let used = rules.matches().map(|_| Cell::new(false)).collect();
        Self { allowed: cells(), refused: cells(), used, rules }
    }

    /// The rules.
    pub(crate) fn rules(&self) -> &RequestRules {
        &self.rules
    }

    /// The decision about a request, whose path is in normal form if the rules need that.
    pub(crate) fn decide(&self, request: &impl RequestView) -> Rc<Decision> {
        match self.rules.select(request) {
            Ok(granting) => {
                if let Some(used) = self.used.get(granting.matching) {
                    used.set(true);
                }
                kept(self.allowed.get(granting.rule), || self.rules.allowed(granting.rule))
            }
            Err(closest) => self.refuse(closest),
        }
    }

    /// The decision about a request that no rule can grant.
    pub(crate) fn refuse_any(&self) -> Rc<Decision> {
        self.refuse(0)
    }

    /// Passes on to newer rules which of their matches have granted a request. Returns what they say to one that they no
    /// longer grant, if there is one.
    pub(super) fn pass_on(&self, newer: &Self) -> Option<Denial> {
        let mut withdrawn = None;
        let used = self.rules.matches().zip(&self.used).filter(|(_, used)| used.get());
        for ((_, wanted), _) in used {
            let same = newer.rules.matches().position(|(_, one)| one == wanted);
            match same.and_then(|at| newer.used.get(at)) {
                Some(used) => used.set(true),
                None => withdrawn = newer.refusal(),
            }
        }
        withdrawn
    }

    /// Why a request that no rule grants is refused; `None` in audit mode.
    pub(super) fn refusal(&self) -> Option<Denial> {
        match self.rules.refused(0) {
            Decision::Deny(denial) => Some(denial),
            Decision::Allow(_) => None,
        }
    }

    fn refuse(&self, closest: usize) -> Rc<Decision> {
        kept(self.refused.get(closest), || self.rules.refused(closest))
    }
}

fn kept(cell: Option<&OnceCell<Rc<Decision>>>, make: impl FnOnce() -> Decision) -> Rc<Decision> {
    match cell {
        Some(cell) => cell.get_or_init(|| make().into()).clone(),
        None => make().into(),
    }
}
