//! The sequence service's own record.

use throughline::Messages;
use throughline_wire::report::{Reply, Request};

use super::sequence::Ledger;
use super::{ServiceError, recv, send};

pub(super) async fn serve(ledger: &Ledger, mut messages: Messages) -> Result<(), ServiceError> {
    while let Some(request) = recv(&mut messages).await? {
        let channels = ledger.list(match request {
            Request::All => None,
            Request::Seed(seed) => Some(seed),
        });
        let count = channels.len() as u64;
        for channel in channels {
            send(&mut messages, &Reply::Channel(Box::new(channel))).await?;
        }
        send(&mut messages, &Reply::End { channels: count }).await?;
    }
    Ok(())
}
