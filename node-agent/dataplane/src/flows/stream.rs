//! Tells one asker.

use std::io;
use std::sync::Arc;

use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::broadcast::error::RecvError;

use super::{FlowsQuestion, Told};
use crate::Dataplane;

/// Writes what has been and, if asked, what comes, a line each, until the asker goes.
pub async fn answer(
    dataplane: &Dataplane,
    question: &FlowsQuestion,
    mut read: impl AsyncRead + Unpin,
    mut write: impl AsyncWrite + Unpin,
) -> io::Result<()> {
    let news = &dataplane.news;
    // Before what has been is looked at: nothing in between is lost. What comes in between may be told twice, unless it is
    // left out below.
    let mut following = question.follow.then(|| news.follow());
    let past: Vec<Arc<Told>> = {
        let last = news.last.lock();
        let wanted = last.iter().rev().filter(|told| holds(question, told)).take(question.last).cloned();
        wanted.collect()
    };
    for told in past.iter().rev() {
        line(&mut write, told).await?;
    }
    let Some((_following, receiver)) = &mut following else {
        return Ok(());
    };
    let mut byte = [0];
    loop {
        let told = tokio::select! {
            // The asker says nothing more: what can be read is that it has gone.
            _ = read.read(&mut byte) => return Ok(()),
            told = receiver.recv() => told,
        };
        match told {
            Ok(told) if past.iter().any(|p| Arc::ptr_eq(p, &told)) => {}
            Ok(told) if holds(question, &told) => line(&mut write, &told).await?,
            Ok(_) => {}
            Err(RecvError::Lagged(behind)) => line(&mut write, &Told::Missed(behind)).await?,
            Err(RecvError::Closed) => return Ok(()),
        }
    }
}

fn holds(question: &FlowsQuestion, told: &Told) -> bool {
    match told {
        Told::Flow(seen) => question.filter.holds(seen),
        Told::Missed(_) => true,
    }
}

async fn line(write: &mut (impl AsyncWrite + Unpin), told: &Told) -> io::Result<()> {
    write.write_all(format!("{}\n", json!({"result": told})).as_bytes()).await
}
