use super::*;
use crate::testing::now;

const TIMING: RotationTiming =
    RotationTiming { propagation: Duration::from_secs(10), max_life: Duration::from_secs(100) };

fn root() -> Issuer {
    Issuer::create_root(now()).unwrap()
}

#[test]
fn a_rotation_trusts_both_then_issues_new_then_drops_old() {
    let (old, new, start) = (root(), root(), now());
    let steady = AuthorityState::steady(old.clone(), start);
    assert_eq!(steady.trusted(), [old.root().clone()]);
    assert!(steady.advanced(start, Farewell::Retire).is_none());

    let both = steady.trust_both(new.clone(), start);
    assert!(both.issuer.same_as(&old));
    assert_eq!(both.trusted(), [old.root().clone(), new.root().clone()]);
    assert!(both.intermediates(start).is_empty());

    let issue_new = both.advanced(start, Farewell::Retire).unwrap();
    assert!(issue_new.issuer.same_as(&new));
    assert_eq!(issue_new.trusted(), [new.root().clone(), old.root().clone()]);
    assert_eq!(issue_new.intermediates(start).len(), 1);

    for (farewell, intermediates, retired) in
        [(Farewell::Retire, 1, vec![fingerprint(old.root())]), (Farewell::Revoke, 0, Vec::new())]
    {
        let done = issue_new.advanced(start, farewell).unwrap();
        assert!(done.issuer.same_as(&new));
        assert_eq!(done.trusted(), [new.root().clone()]);
        assert_eq!(done.intermediates(start).len(), intermediates);
        assert_eq!(done.retired, retired);
        assert!(done.advanced(start, farewell).is_none());
    }
}

fn rotated(state: &AuthorityState, farewell: Farewell) -> AuthorityState {
    let both = state.trust_both(root(), now());
    both.advanced(now(), farewell).unwrap().advanced(now(), farewell).unwrap()
}

/// Whether a leaf of this state verifies by a root alone.
fn verifies(state: &AuthorityState, root: &CertificateDer<'static>) -> bool {
    let (key, end) = (rcgen::KeyPair::generate().unwrap(), now() + Duration::from_secs(3600));
    let names = [tidegate_core::San::Uri("spiffe://cluster.local/ns/a/sa/b".into())];
    let leaf = rcgen::PublicKeyData::subject_public_key_info(&key);
    let leaf = state.issuer.sign_leaf(&leaf, &names, false, now() - Duration::from_secs(1), end).unwrap();
    let mut chain = state.full_chain(leaf, end);
    chain.pop();
    tidegate_runtime::chain::leads_to(&chain, root, SystemTime::now())
}

#[test]
fn certificates_lead_to_every_root_that_was_retired_until_it_is_revoked() {
    let first = AuthorityState::steady(root(), now());
    let second = rotated(&first, Farewell::Retire);
    let third = rotated(&second, Farewell::Retire);
    let roots: Vec<_> = [&first, &second, &third].iter().map(|state| state.issuer.root().clone()).collect();
    assert!(roots.iter().all(|root| verifies(&third, root)));
    assert_eq!(third.retired, [fingerprint(&roots[0]), fingerprint(&roots[1])]);
    let last = rotated(&third, Farewell::Revoke);
    assert!(!roots.iter().any(|root| verifies(&last, root)) && verifies(&last, last.issuer.root()));
    assert!(last.retired.is_empty());

    // The chain does not grow without bound: the oldest roots are the first that it does not lead to.
    let mut state = first;
    for _ in 0..MOST_RETIRED + 2 {
        state = rotated(&state, Farewell::Retire);
    }
    assert_eq!(state.intermediates(now()).len(), MOST_INTERMEDIATES);
    assert_eq!(state.retired.len(), MOST_RETIRED);
    assert!(verifies(&state, state.issuer.root()) && !verifies(&state, &roots[0]));
}

#[test]
fn a_bridge_that_ends_before_a_leaf_is_left_out_of_its_chain() {
    let state = rotated(&AuthorityState::steady(root(), now()), Farewell::Retire);
    let end = state.issuer.not_after();
    assert_eq!(state.intermediates(end - Duration::from_secs(60)).len(), 1);
    assert!(state.intermediates(end + Duration::from_secs(60)).is_empty());
}

#[test]
fn each_step_waits_until_the_mesh_has_caught_up() {
    let start = now();
    let after = |seconds| start + Duration::from_secs(seconds);
    let both = AuthorityState::steady(root(), start).trust_both(root(), start);
    let issue_new = both.advanced(start, Farewell::Retire).unwrap();
    for (state, at, allowed) in [
        (&both, after(0), false),
        (&both, after(9), false),
        (&both, after(10), true),
        (&issue_new, after(10), false),
        (&issue_new, after(109), false),
        (&issue_new, after(110), true),
        // A clock that was set back.
        (&issue_new, start - Duration::from_secs(50), false),
    ] {
        let advanced = state.may_advance(at, start, TIMING, Vouched::Nothing);
        assert_eq!(advanced.is_ok(), allowed, "{} {at:?}", state.step.name());
    }
    // Published only a while after the step was taken.
    assert!(both.may_advance(after(14), after(5), TIMING, Vouched::Nothing).is_err());
    assert!(both.may_advance(after(15), after(5), TIMING, Vouched::Nothing).is_ok());
    // Vouching for new certificates saves the wait for old ones, and no other.
    for (state, seconds, allowed) in
        [(&both, 9, false), (&both, 10, true), (&issue_new, 9, false), (&issue_new, 10, true)]
    {
        let advanced = state.may_advance(after(seconds), start, TIMING, Vouched::Renewed);
        assert_eq!(advanced.is_ok(), allowed, "{} {seconds}", state.step.name());
        assert!(state.may_advance(start, start, TIMING, Vouched::Everything).is_ok());
    }
    let reason = both.may_advance(after(3), start, TIMING, Vouched::Nothing).unwrap_err().to_string();
    assert_eq!(reason, "the bundle with the new root may not have reached every workload; wait 8s more");
}

#[test]
fn every_state_comes_back_from_its_entries() {
    let start = now();
    let steady = AuthorityState::steady(root(), start);
    let both = steady.trust_both(root(), start);
    let issue_new = both.advanced(start, Farewell::Retire).unwrap();
    let retired = issue_new.advanced(start, Farewell::Retire).unwrap();
    let again = retired.trust_both(root(), start);
    for state in [steady, both, issue_new, retired, again] {
        let back = AuthorityState::from_entries(&state.to_entries(), start).unwrap();
        assert_eq!(back.to_entries(), state.to_entries());
        assert_eq!(back.since, start);
        assert_eq!(back.trusted(), state.trusted());
        assert_eq!(back.intermediates(start), state.intermediates(start));
        assert_eq!(back.retired, state.retired);
        assert_eq!(back.step.name(), state.step.name());
    }
}

#[test]
fn damaged_entries_are_refused_by_name() {
    let start = now();
    let good = AuthorityState::steady(root(), start).trust_both(root(), start).to_entries();
    for name in ["state.json", "issuer.crt", "issuer.key", "next.crt", "next.key"] {
        let mut missing = good.clone();
        missing.0.remove(name);
        let error = AuthorityState::from_entries(&missing, start).unwrap_err().to_string();
        assert_eq!(error, format!("entry {name} is missing"));
        let mut broken = good.clone();
        broken.0.insert(name.to_owned(), b"?".to_vec());
        let error = AuthorityState::from_entries(&broken, start).unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
    }
    let mut other_key = good.clone();
    other_key.0.insert("issuer.key".to_owned(), good.0["next.key"].clone());
    let error = AuthorityState::from_entries(&other_key, start).unwrap_err().to_string();
    assert!(error.contains("does not belong"), "{error}");
}
