use proptest::prelude::*;

use super::*;

fn policy(on: &str, methods: RetryMethods) -> RetryPolicy {
    RetryPolicy::new(RetryOn::parse(on).unwrap(), methods, 2, Backoff::NONE, None).unwrap()
}

fn attempt(method: &'static str, failure: Failure) -> Attempt {
    Attempt {
        is_idempotent: is_idempotent(method.as_bytes()),
        body: RequestBody::Replayable,
        retries: 0,
        failure,
        is_answered: false,
        remaining: None,
        pushback: None,
        is_within_budget: true,
        random: 0,
    }
}

const UNAVAILABLE: Failure = Failure::Status { code: 503, is_rate_limited: false };
const AT_ONCE: RetryDecision = RetryDecision::After(Duration::ZERO);

#[test]
fn without_a_policy_only_what_was_not_processed_is_sent_again() {
    let decide = |attempt| RetryPolicy::unprocessed().decide(&attempt);
    for (method, failure, expected) in [
        ("POST", Failure::Connect, AT_ONCE),
        ("POST", Failure::RefusedStream, AT_ONCE),
        ("GET", Failure::StaleConnection, AT_ONCE),
        ("POST", Failure::StaleConnection, RetryDecision::Final(FinalReason::NotRetriable)),
        ("GET", Failure::Reset, RetryDecision::Final(FinalReason::NotRetriable)),
        ("GET", Failure::Timeout, RetryDecision::Final(FinalReason::NotRetriable)),
        ("GET", UNAVAILABLE, RetryDecision::Final(FinalReason::NotRetriable)),
        ("POST", Failure::Grpc(14), RetryDecision::Final(FinalReason::NotRetriable)),
    ] {
        assert_eq!(decide(attempt(method, failure)), expected, "{method} {failure:?}");
    }
    let unsent = Attempt { body: RequestBody::Unsent, ..attempt("POST", Failure::StaleConnection) };
    assert_eq!(decide(unsent), AT_ONCE);
    let third = Attempt { retries: 2, ..attempt("GET", Failure::Connect) };
    assert_eq!(decide(third), RetryDecision::Final(FinalReason::AttemptsExhausted));
}

#[test]
fn a_policy_sends_a_post_again_only_if_it_says_so_or_the_client_does() {
    let idempotent = policy("5xx", RetryMethods::Idempotent);
    let post = attempt("POST", UNAVAILABLE);
    assert_eq!(idempotent.decide(&post), RetryDecision::Final(FinalReason::NotIdempotent));
    assert_eq!(idempotent.decide(&Attempt { is_idempotent: true, ..post }), AT_ONCE);
    assert_eq!(policy("5xx", RetryMethods::All).decide(&post), AT_ONCE);
    for method in ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"] {
        assert_eq!(idempotent.decide(&attempt(method, UNAVAILABLE)), AT_ONCE, "{method}");
    }
    for method in ["PATCH", "CONNECT", "get", ""] {
        assert_ne!(idempotent.decide(&attempt(method, UNAVAILABLE)), AT_ONCE, "{method}");
    }
}

#[test]
fn no_attempts_switch_every_retry_off() {
    let off = RetryPolicy::new(RetryOn::default(), RetryMethods::All, 0, Backoff::NONE, None).unwrap();
    let connect = attempt("GET", Failure::Connect);
    assert_eq!(off.decide(&connect), RetryDecision::Final(FinalReason::AttemptsExhausted));
    let error =
        RetryPolicy::new(RetryOn::default(), RetryMethods::All, 101, Backoff::NONE, None).unwrap_err();
    assert_eq!(error.to_string(), "retry.attempts: \"101\" is more than 100");
}

#[test]
fn each_reason_has_its_own_word() {
    let policy = policy("5xx", RetryMethods::Idempotent);
    let get = attempt("GET", UNAVAILABLE);
    let wait = Some(Pushback::After(Duration::from_secs(2)));
    for (attempt, reason) in [
        (Attempt { is_answered: true, ..get }, "answered"),
        (attempt("GET", Failure::Grpc(14)), "not_retriable"),
        (attempt("POST", UNAVAILABLE), "not_idempotent"),
        (Attempt { body: RequestBody::Gone, ..get }, "body_too_large"),
        (Attempt { pushback: Some(Pushback::Stop), ..get }, "pushback"),
        (Attempt { retries: 2, ..get }, "attempts_exhausted"),
        (Attempt { is_within_budget: false, ..get }, "budget_exhausted"),
        (Attempt { pushback: wait, remaining: Some(Duration::from_secs(1)), ..get }, "timeout"),
        (Attempt { remaining: Some(Duration::ZERO), ..get }, "timeout"),
    ] {
        let RetryDecision::Final(found) = policy.decide(&attempt) else { panic!("{reason}") };
        assert_eq!(found.code(), reason);
    }
    let later = Attempt { pushback: wait, remaining: Some(Duration::from_secs(3)), ..get };
    assert_eq!(policy.decide(&later), RetryDecision::After(Duration::from_secs(2)));
}

fn failure() -> impl Strategy<Value = Failure> {
    prop_oneof![
        Just(Failure::Connect),
        Just(Failure::RefusedStream),
        Just(Failure::StaleConnection),
        Just(Failure::Reset),
        Just(Failure::Timeout),
        (400_u16..600, any::<bool>())
            .prop_map(|(code, is_rate_limited)| Failure::Status { code, is_rate_limited }),
        (0_u8..17).prop_map(Failure::Grpc),
    ]
}

proptest! {
    #[test]
    fn a_request_that_may_have_been_processed_is_never_sent_again_without_leave(
        failure in failure(),
        method in prop::sample::select(vec!["GET", "POST", "PUT", "PATCH"]),
        body in prop::sample::select(vec![RequestBody::Unsent, RequestBody::Replayable, RequestBody::Gone]),
        on in prop::sample::select(vec!["", "5xx", "gateway-error,409", "unavailable,reset,envoy-ratelimited"]),
        retries in 0_u32..4,
        flags: [bool; 3],
    ) {
        let [is_answered, is_within_budget, has_idempotency_key] = flags;
        let harmless = matches!(method, "GET" | "PUT") || has_idempotency_key;
        let first = attempt(method, failure);
        let is_idempotent = first.is_idempotent || has_idempotency_key;
        let tried = Attempt { body, retries, is_answered, is_within_budget, is_idempotent, ..first };
        let policy = policy(on, RetryMethods::Idempotent);
        if let RetryDecision::After(_) = policy.decide(&tried) {
            let cannot_be_processed = matches!(failure, Failure::Connect | Failure::RefusedStream)
                || (failure == Failure::StaleConnection && body == RequestBody::Unsent);
            prop_assert!(cannot_be_processed || harmless);
            prop_assert!(!is_answered && is_within_budget && retries < 2 && body != RequestBody::Gone);
        }
    }
}
