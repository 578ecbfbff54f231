//! Files into the guest and out of it.

use throughline::{MessageReceiver, MessageSender, Messages};
use throughline_files::pump::{self, Outcome};
use throughline_files::{Input, Output, Owner, Root, failure, found, pack, unpack};
use throughline_wire::files::{Failure, FailureKind, Frame, Get, Put, Reply, Request, Summary};

use super::ServiceError;
use crate::accounts::Accounts;
use crate::agent::Agent;

pub(super) async fn serve(agent: &Agent, messages: Messages) -> Result<(), ServiceError> {
    let (mut sender, mut receiver) = messages.into_split();
    let Some(first) = receiver.recv().await? else { return Ok(()) };
    let done = match Frame::control::<Request>(&first) {
        Ok(Request::Put(put)) => self::put(agent, put, &mut receiver).await?,
        Ok(Request::Get(get)) => self::get(agent, get, &mut sender).await?,
        Ok(Request::Stat { path, follow }) => match look(agent, path.into_vec(), follow).await {
            Ok(reply) => {
                sender.send(&Frame::of(&reply)?).await?;
                return Ok(sender.shutdown().await?);
            }
            Err(failure) => (Err(failure), Summary::default()),
        },
        Ok(Request::End) => (Err(wrong("a transfer cannot begin with its end")), Summary::default()),
        Err(error) => (Err(wrong(&error.to_string())), Summary::default()),
    };
    let reply = match done {
        (Ok(()), summary) => Reply::Done(summary),
        (Err(failure), before) => Reply::Failed { failure, before },
    };
    sender.send(&Frame::of(&reply)?).await?;
    Ok(sender.shutdown().await?)
}

async fn put(agent: &Agent, put: Put, receiver: &mut MessageReceiver) -> Result<Outcome, ServiceError> {
    let owner = match owner(agent, put.owner.as_deref()) {
        Ok(owner) => owner,
        Err(failure) => return Ok((Err(failure), Summary::default())),
    };
    let place = agent.places.root.clone();
    let work = move |input: &mut Input, copied: &mut Summary| {
        let root = Root::open(&place, Some(owner), Root::EVERY_MODE)?;
        unpack(&root, &put.dest, &put.content, input, copied)
    };
    let end = |message: &[u8]| match Frame::control::<Request>(message) {
        Ok(Request::End) => Ok(()),
        Ok(_) => Err(wrong("a second request on the channel of a transfer")),
        Err(error) => Err(wrong(&error.to_string())),
    };
    Ok(pump::receive(receiver, work, |_| {}, end).await?)
}

async fn get(agent: &Agent, get: Get, sender: &mut MessageSender) -> Result<Outcome, ServiceError> {
    match look(agent, get.source.to_vec(), get.follow).await {
        Ok(reply) => sender.send(&Frame::of(&reply)?).await?,
        Err(failure) => return Ok((Err(failure), Summary::default())),
    }
    let place = agent.places.root.clone();
    let secrets = agent.secrets.files();
    let work = move |output: &mut Output, copied: &mut Summary| {
        let root = Root::open(&place, None, Root::EVERY_MODE)?;
        pack(&root, (&get.source, &get.form, get.follow), &|stat| secrets.has(stat.st_dev, stat.st_ino), output, copied)
    };
    Ok(pump::send(sender, work, |_| {}).await?)
}

async fn look(agent: &Agent, path: Vec<u8>, follow: bool) -> Result<Reply, Failure> {
    let place = agent.places.root.clone();
    let look = move || found(&Root::open(&place, None, Root::EVERY_MODE)?, &path, follow);
    pump::apart(look).await.map(Reply::Found)
}

fn owner(agent: &Agent, user: Option<&str>) -> Result<Owner, Failure> {
    let account = Accounts::read(&agent.places.etc)
        .and_then(|accounts| accounts.find(user))
        .map_err(|error| failure(FailureKind::NoSuchUser, user.unwrap_or("root").as_bytes(), error.to_string()))?;
    Ok(Owner { uid: account.uid, gid: account.gid })
}

fn wrong(message: &str) -> Failure {
    failure(FailureKind::Protocol, b"transfer", message)
}
