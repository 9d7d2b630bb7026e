//! Bytes that are passed on unseen, both ways.

use std::rc::Rc;
use std::time::SystemTime;

use bytes::BytesMut;
use tokio::net::TcpStream;

use crate::authorizer::Authorizer;
use crate::http::HttpContext;
use crate::lifeline::Lifeline;
use crate::pump::{Patience, Pump};
use crate::stream::{Abort, MaybeTls};
use crate::telemetry::{Record, ResponseFlag};
use crate::upstream::{self, ConnectError, Deadline};

/// Connects a client that was let in to the app, and carries their bytes until both are done. An end that is not an
/// orderly one is told to the other side by RST.
pub(super) async fn serve(
    client: MaybeTls,
    received: BytesMut,
    authorizer: &Rc<Authorizer>,
    line: &Lifeline,
    env: &Rc<HttpContext>,
) {
    let info = authorizer.info();
    let record = |pump: Option<&Pump<MaybeTls, TcpStream>>, flag, details| {
        env.telemetry.record(&Record {
            connection: Some(info),
            decision: Some(&authorizer.decide()),
            start: Some(info.accepted),
            duration: SystemTime::now().duration_since(info.accepted).unwrap_or_default(),
            flag,
            details,
            received: pump.map_or(0, Pump::received),
            sent: pump.map_or(0, Pump::sent),
            ..Record::default()
        });
    };
    // Large, and done with before the bytes.
    let app = match Box::pin(upstream::dial(info.app, &env.limits, Deadline::Lifeline(line))).await {
        Ok(app) => app,
        Err(error) => {
            let flag = match error {
                ConnectError::Ended(_) => ResponseFlag::None,
                _ => ResponseFlag::UpstreamConnectionFailure,
            };
            record(None, flag, error.details());
            return client.abort();
        }
    };
    let mut pump = Pump::new(client, app, &received);
    drop(received);
    let patience = Patience { stalled: env.limits.body, idle: None };
    match line.guard(pump.run(line, patience)).await {
        Ok(Ok(())) => record(Some(&pump), ResponseFlag::None, "via_upstream"),
        Ok(Err(failure)) => {
            record(Some(&pump), failure.flag(), failure.details());
            pump.reset();
        }
        Err(ended) => {
            record(Some(&pump), ResponseFlag::None, ended.0.details());
            pump.reset();
        }
    }
}
