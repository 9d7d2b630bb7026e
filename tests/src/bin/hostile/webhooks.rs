//! Attacks on the injector's webhook, which requires no client certificate.

use std::io;
use std::time::Duration;

use tidegate_tests::client::{Client, Connection, End};
use tidegate_tests::http1::MessageKind;
use tidegate_tests::webhook::{LARGEST, create, create_named, full, head, send};

use crate::sent::{AttackSent, hold, repeat};
use crate::site::HostileSite;

/// Connections with a body that does not end.
const UNFINISHED: usize = 40;
/// What is sent of each body.
const BEGUN: usize = 64 << 10;
/// Sizes of Pods that are small on the wire and large once decoded.
const SIZES: [usize; 2] = [260 << 10, LARGEST - 1024];
const NAME: usize = 3_900_000;

/// Bodies of the largest size, of which only the beginning is sent.
pub(crate) fn unfinished_bodies(site: &HostileSite, time: Duration) -> AttackSent {
    let client = site.attacker_of_webhook();
    let begun = [head(LARGEST).as_bytes(), &[b' '; BEGUN]].concat();
    hold(UNFINISHED, time, || {
        let mut connection = connect(&client)?;
        connection.write(&begun);
        Ok((connection, begun.len() as u64))
    })
}

/// Pods with as many volumes of two bytes each as fit.
pub(crate) fn empty_volumes(site: &HostileSite, time: Duration) -> AttackSent {
    let reviews = SIZES.map(|bytes| create(&full("volumes", "{}", bytes)));
    ask(site, time, &reviews)
}

/// Reviews with names that would fill the log.
pub(crate) fn long_names(site: &HostileSite, time: Duration) -> AttackSent {
    let name = "a\\n".repeat(NAME / 3);
    ask(site, time, &[create_named(&name, r#"{"metadata":{}}"#)])
}

/// Reviews one after another, each on its own connection, until it is answered or ended.
fn ask(site: &HostileSite, time: Duration, reviews: &[String]) -> AttackSent {
    let client = site.attacker_of_webhook();
    let mut next = reviews.iter().cycle();
    let bytes = repeat(time, || {
        let (mut connection, review) = (connect(&client)?, next.next().unwrap());
        send(&mut connection, review);
        // An answer or an end: only what other clients see matters.
        let _ = connection.response(MessageKind::Response);
        Ok(review.len() as u64)
    });
    AttackSent::new(bytes, 1)
}

fn connect(client: &Client) -> io::Result<Connection> {
    client.connect().map_err(|end: End| io::Error::other(format!("{end:?}")))
}
