//! Taking the user's secrets from the host.

use throughline::Messages;
use throughline_wire::decode;
use throughline_wire::secrets::{Reply, Request};

use super::{ServiceError, send};
use crate::console::say;
use crate::secrets::{SecretError, Secrets};

/// What is received here is overwritten when it is freed, as all memory of the agent is.
pub(super) async fn serve(secrets: &Secrets, mut messages: Messages) -> Result<(), ServiceError> {
    let turn = secrets.begin();
    while let Some(message) = messages.recv().await? {
        let (done, last) = match decode(&message)? {
            Request::Piece { name, data } => (secrets.piece(turn, name, data), false),
            Request::End => (secrets.end(turn), true),
        };
        if last || done.is_err() {
            return send(&mut messages, &reply(done)).await;
        }
    }
    Ok(())
}

fn reply(done: Result<(), SecretError>) -> Reply {
    match done {
        Ok(()) => Reply::InPlace,
        Err(error) => {
            say(&format!("the user's processes wait for their secrets: {error}"));
            Reply::Failed(error.to_string())
        }
    }
}
