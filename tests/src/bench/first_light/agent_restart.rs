//! The agent killed and started again while connections are made through a Service.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use kube::Client;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{Args, request_rate::Scene};
use crate::bench::{Goal, Line, inside::Helper};

const RATE: u32 = 100;

/// Kills a quarter into the time, starts again at the half.
pub async fn measure(client: &Client, args: &Args) -> Result<Vec<Line>> {
    let scene = Scene::make(client, args).await?;
    let (time, to) = (args.restart_seconds, scene.service.to_string());
    let mut making = Helper::start(Some(scene.from), &["connections", &to, &RATE.to_string(), &time.to_string()])?;
    let begin = Instant::now();
    tokio::time::sleep(Duration::from_secs(time) / 4).await;
    let agent = Pid::from_raw(i32::try_from(args.agent_pid)?);
    kill(agent, Signal::SIGKILL).context("cannot kill the agent")?;
    tokio::time::sleep((Duration::from_secs(time) / 2).saturating_sub(begin.elapsed())).await;
    let status = Command::new("sh").args(["-c", &args.restart_agent]).status().context("cannot start the agent again")?;
    if !status.success() {
        bail!("`{}` ended with {status}", args.restart_agent);
    }
    let line = tokio::task::spawn_blocking(move || making.line()).await??;
    scene.end().await?;
    let numbers: Vec<f64> = line.split(' ').map(str::parse).collect::<Result<_, _>>().with_context(|| format!("helper said {line:?}"))?;
    let [made, failed, broken] = numbers[..] else { bail!("helper said {line:?}") };
    Ok(vec![
        Line::single(
            "connections made while the agent was killed and started again",
            "",
            made,
            Goal::AtLeast(f64::from(RATE) * time as f64 * 0.9),
        ),
        Line::single("of them failed to connect", "", failed, Goal::AtMost(0.0)),
        Line::single("of them reset", "", broken, Goal::AtMost(0.0)),
    ])
}
