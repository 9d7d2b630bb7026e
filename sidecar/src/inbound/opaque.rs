//! Bytes that are passed on unseen, both ways.

use std::rc::Rc;
use std::time::SystemTime;

use bytes::BytesMut;
use tidegate_core::backend::{Endpoint, Transport};
use tidegate_core::policy::MeshProtocol;

use crate::authorizer::Authorizer;
use crate::http::HttpContext;
use crate::lifeline::Lifeline;
use crate::stream::{Abort, MaybeTls};
use crate::telemetry::{ConnectionSecurity, Record, ResponseFlag};
use crate::tunnel::{Tunnel, TunnelPatience};
use crate::upstream::Deadline;

/// Connects an admitted client to the app, and forwards bytes until both are done. If one side ends abnormally, the other
/// gets a RST.
pub(super) async fn serve(
    mut client: MaybeTls,
    received: BytesMut,
    authorizer: &Rc<Authorizer>,
    line: &Lifeline,
    env: &Rc<HttpContext>,
) {
    let info = authorizer.info();
    let tcp = env.telemetry.tcp(false, info.remote, ConnectionSecurity::inbound(info.terms));
    let record = |tunnel: &Tunnel, flag, details| {
        tcp.moved(tunnel.received(), tunnel.sent());
        env.telemetry.record(&Record {
            connection: Some(info),
            decision: Some(&authorizer.decide()),
            start: Some(info.accepted),
            duration: SystemTime::now().duration_since(info.accepted).unwrap_or_default(),
            flag,
            details,
            received: tunnel.received(),
            sent: tunnel.sent(),
            ..Record::default()
        });
    };
    // Large, and done with before the bytes.
    let endpoint = Endpoint::new(info.app, Transport::Plain);
    let connecting = env.upstreams.connect(&endpoint, MeshProtocol::Tcp, Deadline::Lifeline(line));
    let mut app = match Box::pin(connecting).await {
        Ok(app) => app,
        Err(error) => {
            let failure = error.failure();
            record(&Tunnel::default(), failure.flag(), failure.details());
            return client.abort();
        }
    };
    let mut tunnel = Tunnel::new(&received, &[]);
    drop(received);
    let patience = TunnelPatience { stalled: env.limits.body, idle: None, half_closed: None };
    let (flag, details) = match line.guard(tunnel.run(&mut client, &mut app, line, patience)).await {
        Ok(Ok(())) => return record(&tunnel, ResponseFlag::None, "via_upstream"),
        Ok(Err(error)) => (error.flag(), error.details()),
        Err(ended) => (ResponseFlag::None, ended.0.details()),
    };
    record(&tunnel, flag, details);
    client.abort();
    app.abort();
}
