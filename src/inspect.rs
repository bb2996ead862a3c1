//! Questions to the agent of this host, through its socket.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
};

use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;
use xebec_dataplane::inspect::{Question, SOCKET};

/// Which agent.
#[derive(Debug, clap::Args)]
pub struct Agent {
    /// Sockets of this host's node. `cargo xtask up` prints that of its node.
    #[arg(long, env = "XEBEC_RUN_DIR", default_value = "/run/xebec")]
    pub run_dir: PathBuf,
}

/// How to print an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// For people.
    Text,
    /// For programs.
    Json,
}

impl Agent {
    /// Puts a question and reads the answer.
    pub fn ask<T: DeserializeOwned>(&self, question: &Question) -> Result<T> {
        let mut line = String::new();
        self.put(question)?.read_line(&mut line).context("the agent did not answer")?;
        read(&line)
    }

    /// Puts a question whose answer has any number of lines, until `each` wants no more of them.
    pub fn ask_on<T: DeserializeOwned>(&self, question: &Question, mut each: impl FnMut(T) -> Result<bool>) -> Result<()> {
        for line in self.put(question)?.lines() {
            if !each(read(&line.context("the agent went away")?)?)? {
                break;
            }
        }
        Ok(())
    }

    fn put(&self, question: &Question) -> Result<BufReader<UnixStream>> {
        let socket = self.run_dir.join(SOCKET);
        let mut stream = UnixStream::connect(&socket).with_context(|| {
            format!("no agent answers on {}; is the node up, are you root, and is --run-dir its directory?", socket.display())
        })?;
        let question = serde_json::to_string(question)?;
        writeln!(stream, "{question}").context("cannot ask the agent")?;
        Ok(BufReader::new(stream))
    }
}

fn read<T: DeserializeOwned>(line: &str) -> Result<T> {
    let answer: Answer<T> = serde_json::from_str(line).context("the agent's answer cannot be read; is it of another version?")?;
    match answer {
        Answer::Result(result) => Ok(result),
        Answer::Error(error) => bail!("{error}"),
    }
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
enum Answer<T> {
    Result(T),
    Error(String),
}
